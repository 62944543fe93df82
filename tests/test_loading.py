"""Checkpoints: the published layout, and every way in which one can be wrong."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from src.models.coconut import COCONUT
from src.models.loading import load_backbone, load_reward_model
from src.sampling.engine import sample
from src.sampling.samplers import Sampling
from src.sampling.trajectories import Request
from tests.conftest import RANDOM, random_reward_model
from utils.errors import UserError


@pytest.fixture
def folder(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "model")


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def edit_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_saves_the_published_layout(folder):
    keys = set(load_file(folder / "model.safetensors"))
    assert all(key.startswith("transformer.") for key in keys - {"lm_head.weight"})
    assert "transformer.wte.weight" in keys


def test_round_trip(folder, tmp_path):
    model, tokenizer = load_backbone("coconut", str(folder))
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    before = load_file(folder / "model.safetensors")
    after = load_file(tmp_path / "again" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert isinstance(COCONUT.from_pretrained(tmp_path / "again"), COCONUT)


def test_ids_come_from_the_tokenizer(folder):
    wrong = {"start_latent_token_id": -100, "end_latent_token_id": -1, "eos_token_id": 50256}
    edit_config(folder, **wrong)
    model, tokenizer = load_backbone("coconut", str(folder))
    plain = COCONUT.from_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("<|end-latent|>")
    assert model.config.end_latent_token_id == plain.config.end_latent_token_id == end
    assert model.config.eos_token_id == plain.config.eos_token_id == tokenizer.eos_token_id


def test_tied_head_may_be_absent_or_present(folder):
    edit_weights(folder, lambda weights: weights.pop("lm_head.weight", None))
    one, _ = load_backbone("coconut", str(folder))
    edit_weights(
        folder, lambda w: w.__setitem__("lm_head.weight", w["transformer.wte.weight"].clone())
    )
    other, _ = load_backbone("coconut", str(folder))
    assert torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert one.lm_head.weight is one.transformer.wte.weight


def test_dtype(folder):
    model, _ = load_backbone("coconut", str(folder), "bfloat16")
    assert model.dtype == torch.bfloat16


def fails(folder, message):
    with pytest.raises(UserError, match=message) as error:
        load_backbone("coconut", str(folder))
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def test_missing(folder, tmp_path):
    fails(tmp_path / "none", "hf download ModalityDance/latent-tts-coconut.*")
    fails(tmp_path / "none", "checkpoints/tiny-coconut")
    (folder / "config.json").unlink()
    fails(folder, "no config.json there")


def test_cut_off_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    fails(folder, "can't be read")


def test_cut_off_config(folder):
    path = folder / "config.json"
    path.write_text(path.read_text()[:40])
    fails(folder, "can't be read")


def test_nan(folder):
    def spoil(weights):
        weights["transformer.h.1.mlp.c_fc.weight"][0, 0] = float("nan")

    edit_weights(folder, spoil)
    fails(folder, r"transformer.h.1.mlp.c_fc.weight holds NaN")


def test_other_architecture(folder):
    LlamaConfig(vocab_size=300).save_pretrained(folder)
    fails(folder, "model_type 'llama'")


def test_weights_of_another_model(folder):
    edit_weights(folder, lambda weights: weights.pop("transformer.h.2.ln_1.weight"))
    fails(folder, "missing keys such as transformer.h.2.ln_1.weight")
    edit_weights(
        folder,
        lambda w: w.update(
            {"transformer.h.2.ln_1.weight": torch.ones(32), "projector.1.weight": torch.ones(4, 4)}
        ),
    )
    fails(folder, "unexpected keys such as projector.1.weight")


def publish(name, folder, dtype):
    """A small checkpoint as the hub has them: shards with an index, tied heads left out, ids of -100."""
    model, tokenizer = RANDOM[name](**({"tie_word_embeddings": True} if name == "colar" else {}))
    for key in model.special_tokens:
        setattr(model.config, key, -100)
    model.to(dtype).save_pretrained(folder, max_shard_size="20KB")
    tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert "lm_head.weight" not in index["weight_map"]
    return model


def weights_of(folder):
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", RANDOM)
def test_published_checkpoints_load_sample_score_and_save_unchanged(name, dtype, tmp_path):
    kind = name.split()[0]
    publish(name, tmp_path / "model", getattr(torch, dtype))
    model, tokenizer = load_backbone(kind, str(tmp_path / "model"), dtype)
    assert model.dtype == getattr(torch, dtype)
    end = model.special_tokens["end_latent_token_id"]
    assert model.config.end_latent_token_id == tokenizer.convert_tokens_to_ids(end)
    prompts = model.encode(tokenizer, ["How many?", "A shirt costs 9 dollars."])
    for sampling in (Sampling("noise", noise_std=0.3), Sampling("dropout", dropout_p=0.2)):
        found = sample(model, Request(prompts, [0, 1], 3, 4, 6, 1, sampling))
        assert torch.isfinite(found.thoughts).all()
    judge = random_reward_model(model)
    judge.save_pretrained(tmp_path / "rm")
    loaded = load_reward_model(tmp_path / "rm", model, tokenizer, dtype)
    ids = torch.tensor([prompts[0]])
    scores = loaded(ids, torch.ones_like(ids), found.thoughts[:1], found.num_thoughts[:1])
    assert scores.shape == (1, 3, found.thoughts.shape[2])
    model.save_pretrained(tmp_path / "again")
    before, after = weights_of(tmp_path / "model"), weights_of(tmp_path / "again")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    config = json.loads((tmp_path / "again/config.json").read_text())
    assert config["model_type"] == ("llama" if kind == "colar" else "gpt2")


def test_the_published_names_of_projector_and_latent_head(tmp_path):
    publish("codi", tmp_path / "codi", torch.float32)
    publish("colar", tmp_path / "colar", torch.float32)
    assert {f"projector.{k}.{part}" for k in (1, 3, 4) for part in ("weight", "bias")} == {
        key for key in weights_of(tmp_path / "codi") if not key.startswith("transformer.")
    }
    head = {
        f"lt_head.{k}.{part}"
        for k in ("fc.0", "fc.2", "fc.3", "mean")
        for part in ("weight", "bias")
    }
    assert head == {k for k in weights_of(tmp_path / "colar") if not k.startswith("model.")}


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("codi", "coconut", "says CODI, not COCONUT"),
        ("colar", "codi", "model_type 'llama'"), ("codi", "colar", "model_type 'gpt2'"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_backbone(name, asked, message, tmp_path):
    publish(name, tmp_path / "x", torch.float32)
    with pytest.raises(UserError, match=message):
        load_backbone(asked, str(tmp_path / "x"))


def test_a_plain_llama_is_no_colar(tmp_path):
    publish("colar", tmp_path / "x", torch.float32)
    path = tmp_path / "x/config.json"
    config = json.loads(path.read_text())
    config.pop("latent_embedding_std")
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json lacks latent_embedding_std"):
        load_backbone("colar", str(tmp_path / "x"))


def test_tokenizer_without_special_tokens(folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|end-latent|>", "<|other|>"))
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace("<|end-latent|>", "<|other|>"))
    fails(folder, r"lacks <\|end-latent\|>")
