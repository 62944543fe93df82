"""Checkpoints: the published layout, and every way in which one can be wrong."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from src.models.coconut import COCONUT
from src.models.loading import load_backbone
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
    edit_weights(folder, lambda w: w.__setitem__("lm_head.weight", w["transformer.wte.weight"].clone()))
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


def test_tokenizer_without_special_tokens(folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|end-latent|>", "<|other|>"))
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace("<|end-latent|>", "<|other|>"))
    fails(folder, r"lacks <\|end-latent\|>")
