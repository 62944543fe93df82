"""Checkpoints: the published layout, and faults in one."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig

from src.models.coconut import COCONUT
from src.models.loading import load_backbone, load_reward_model
from src.sampling.engine import sample
from src.sampling.samplers import Sampling
from src.sampling.trajectories import Request
from tests.commands import edit_json
from tests.conftest import LLAMAS, RANDOM, raises_user_error, random_reward_model, save_checkpoint

pytestmark = pytest.mark.quick


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A copy of a small random COCONUT checkpoint, which a test may damage."""
    return shutil.copytree(checkpoint, tmp_path / "model")


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def test_a_saved_checkpoint_has_the_published_keys(folder):
    keys = set(load_file(folder / "model.safetensors"))
    assert all(key.startswith("transformer.") for key in keys - {"lm_head.weight"})
    assert "transformer.wte.weight" in keys


def test_loading_and_saving_keeps_every_weight(folder, tmp_path):
    model, tokenizer = load_backbone("coconut", str(folder))
    save_checkpoint(tmp_path / "again", model, tokenizer)
    before = load_file(folder / "model.safetensors")
    after = load_file(tmp_path / "again" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert isinstance(COCONUT.from_pretrained(tmp_path / "again"), COCONUT)


def test_special_token_ids_come_from_the_tokenizer(folder):
    wrong = {"start_latent_token_id": -100, "end_latent_token_id": -1, "eos_token_id": 50256}
    edit_json(folder / "config.json", **wrong)
    model, tokenizer = load_backbone("coconut", str(folder))
    plain = COCONUT.from_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("<|end-latent|>")
    assert model.config.end_latent_token_id == plain.config.end_latent_token_id == end
    assert model.config.eos_token_id == plain.config.eos_token_id == tokenizer.eos_token_id


def test_the_tied_output_layer_may_be_absent_or_present(folder):
    edit_weights(folder, lambda weights: weights.pop("lm_head.weight", None))
    one, _ = load_backbone("coconut", str(folder))
    edit_weights(
        folder, lambda w: w.__setitem__("lm_head.weight", w["transformer.wte.weight"].clone())
    )
    other, _ = load_backbone("coconut", str(folder))
    assert torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert one.lm_head.weight is one.transformer.wte.weight


def test_a_checkpoint_loads_in_the_given_dtype(folder):
    model, _ = load_backbone("coconut", str(folder), "bfloat16")
    assert model.dtype == torch.bfloat16


def assert_load_fails(folder, message):
    """Loading is a one-line error that names the folder and matches ``message``, a pattern."""
    with raises_user_error(folder, match=message):
        load_backbone("coconut", str(folder))


def test_a_missing_checkpoint_names_where_to_get_one(folder, tmp_path):
    assert_load_fails(tmp_path / "none", "hf download ModalityDance/latent-tts-coconut.*")
    assert_load_fails(tmp_path / "none", "checkpoints/tiny-coconut")
    (folder / "config.json").unlink()
    assert_load_fails(folder, "no config.json there")


def test_truncated_weights_are_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    assert_load_fails(folder, "can't be read")


def test_a_truncated_config_is_refused(folder):
    path = folder / "config.json"
    path.write_text(path.read_text()[:40])
    assert_load_fails(folder, "can't be read")


def test_weights_with_nan_are_refused_by_name(folder):
    def set_nan(weights):
        weights["transformer.h.1.mlp.c_fc.weight"][0, 0] = float("nan")

    edit_weights(folder, set_nan)
    assert_load_fails(folder, r"transformer.h.1.mlp.c_fc.weight holds NaN")


def test_another_architecture_is_refused(folder):
    BertConfig(vocab_size=300).save_pretrained(folder)
    assert_load_fails(folder, "model_type 'bert', COCONUT needs 'gpt2' or 'llama'")


def test_missing_and_unexpected_weights_are_refused_by_name(folder):
    edit_weights(folder, lambda weights: weights.pop("transformer.h.2.ln_1.weight"))
    assert_load_fails(folder, "missing keys such as transformer.h.2.ln_1.weight")
    edit_weights(
        folder,
        lambda w: w.update(
            {"transformer.h.2.ln_1.weight": torch.ones(32), "projector.1.weight": torch.ones(4, 4)}
        ),
    )
    assert_load_fails(folder, "unexpected keys such as projector.1.weight")


def publish(name, folder, dtype):
    """A small checkpoint as on the hub: sharded, without tied output layers, with ids of -100."""
    values = {"tie_word_embeddings": True} if name in LLAMAS else {}
    model, tokenizer = RANDOM[name](**values)
    for key in model.special_tokens:
        setattr(model.config, key, -100)
    model.to(dtype).save_pretrained(folder, max_shard_size="20KB")
    tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert "lm_head.weight" not in index["weight_map"]
    return model


def weights_of(folder):
    weights = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    return weights


CLASSES = {
    "coconut": "COCONUT",
    "codi": "CODI",
    "codi without projector": "CODI",
    "colar": "CoLaR",
    "coconut llama": "LlamaCOCONUT",
    "codi llama": "LlamaCODI",
}


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
        sampled = sample(model, Request(prompts, [0, 1], 3, 4, 6, 1, sampling))
        assert torch.isfinite(sampled.thoughts).all()
    random_reward_model(model).save_pretrained(tmp_path / "rm")
    reward_model = load_reward_model(tmp_path / "rm", model, tokenizer, dtype)
    ids = torch.tensor([prompts[0]])
    thoughts, num_thoughts = sampled.thoughts[:1], sampled.num_thoughts[:1]
    scores = reward_model(ids, torch.ones_like(ids), thoughts, num_thoughts)
    assert scores.shape == (1, 3, thoughts.shape[2])
    model.save_pretrained(tmp_path / "again")
    before, after = weights_of(tmp_path / "model"), weights_of(tmp_path / "again")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    config = json.loads((tmp_path / "again/config.json").read_text())
    assert config["model_type"] == ("llama" if name in LLAMAS else "gpt2")
    assert config["architectures"] == [CLASSES[name]]


def test_projector_and_latent_head_have_the_published_keys(tmp_path):
    publish("codi", tmp_path / "codi", torch.float32)
    publish("colar", tmp_path / "colar", torch.float32)
    projector = {f"projector.{k}.{part}" for k in (1, 3, 4) for part in ("weight", "bias")}
    keys = {key for key in weights_of(tmp_path / "codi") if not key.startswith("transformer.")}
    assert keys == projector
    layers = ("fc.0", "fc.2", "fc.3", "mean")
    latent_head = {f"lt_head.{k}.{part}" for k in layers for part in ("weight", "bias")}
    keys = {key for key in weights_of(tmp_path / "colar") if not key.startswith("model.")}
    assert keys == latent_head


@pytest.mark.parametrize(
    ("name", "model_type", "message"),
    [
        ("codi", "coconut", "says CODI, not COCONUT"),
        ("colar", "codi", "says CoLaR, not CODI"),
        ("codi", "colar", "says CODI, not CoLaR"),
        ("codi llama", "coconut", "says LlamaCODI, not COCONUT"),
    ],
)
def test_a_checkpoint_of_another_backbone_is_refused(name, model_type, message, tmp_path):
    publish(name, tmp_path / "x", torch.float32)
    with raises_user_error(message):
        load_backbone(model_type, str(tmp_path / "x"))


def test_a_llama_without_a_latent_head_is_no_colar(tmp_path):
    publish("colar", tmp_path / "x", torch.float32)
    path = tmp_path / "x/config.json"
    config = json.loads(path.read_text())
    config.pop("latent_embedding_std")
    path.write_text(json.dumps(config))
    with raises_user_error("config.json lacks latent_embedding_std"):
        load_backbone("colar", str(tmp_path / "x"))


def test_a_tokenizer_without_special_tokens_is_refused(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace("<|end-latent|>", "<|other|>"))
    assert_load_fails(folder, r"lacks <\|end-latent\|>")
