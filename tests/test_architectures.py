"""Backbones on architectures other than the published ones, and how a class is chosen."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from src.models import BACKBONES, architectures, model_class
from src.models.colar import CoLaR
from src.models.loading import load_backbone
from src.models.tokenizers import build_tokenizer
from src.sampling import rng
from src.sampling.engine import sample
from src.sampling.samplers import Sampling
from src.sampling.trajectories import Request
from src.training.backbone_model import new_model
from src.training.backbone_recipe import Recipe
from src.training.curriculum import Stage, batches
from src.training.losses import BACKBONE_LOSSES
from tests.commands import ROOT
from tests.conftest import RANDOM, random_gpt2, save_checkpoint
from tests.reference import sample_one
from utils.datasets import load_dataset

pytestmark = pytest.mark.quick

STAGE = {"epochs": 1, "learning_rate": 1e-3, "thoughts": 2, "hidden_steps": -1}
SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48,
}  # fmt: skip


def test_the_default_class_has_the_published_name():
    assert [model_class(name, architectures(name)[0]).__name__ for name in BACKBONES] == [
        "COCONUT",
        "CODI",
        "CoLaR",
    ]
    assert model_class("codi", "llama").__name__ == "LlamaCODI"
    with pytest.raises(ValueError, match="CODI exists for gpt2 and llama, not for bert"):
        model_class("codi", "bert")


def test_a_backbone_loads_the_architecture_of_the_checkpoint(tmp_path):
    for name in ("codi", "codi llama"):
        model, tokenizer = RANDOM[name]()
        save_checkpoint(tmp_path / name, model, tokenizer)
        loaded = BACKBONES["codi"].from_pretrained(tmp_path / name)
        assert type(loaded) is type(model)
        assert loaded.config.end_latent_token_id == model.config.end_latent_token_id


@torch.no_grad()
def test_colar_on_gpt2_equals_the_reference(tmp_path):
    shape = {"latent_intermediate_size": 24, "latent_embedding_std": 0.3}
    save_checkpoint(tmp_path / "x", *random_gpt2(CoLaR, n_positions=128, **shape))
    model, tokenizer = load_backbone("colar", str(tmp_path / "x"))
    assert type(model).__name__ == "GPT2CoLaR"
    prompts = model.encode(tokenizer, ["How many?", "A shirt costs 9 dollars."])
    settings = (4, 6, 1, Sampling("dropout", dropout_p=0.1))
    sampled = sample(model, Request(prompts, [0, 1], 2, *settings))
    for q, prompt in enumerate(prompts):
        for n in range(2):
            thoughts, tokens = sample_one(model, prompt, q, n, *settings)
            assert sampled.tokens[q][n] == tokens
            found = sampled.thoughts[q, n, : len(thoughts)]
            torch.testing.assert_close(found, thoughts, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["coconut", "codi"])
def test_a_plain_llama_becomes_a_backbone_that_learns(name, tmp_path):
    """Every weight gets a gradient, those of a new projector too."""
    tokenizer = build_tokenizer(BACKBONES[name])
    base = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SHAPE))
    save_checkpoint(tmp_path / "base", base, tokenizer)
    valid = str(ROOT / "data/tiny_valid.json")
    config = {"projector": True} if name == "codi" else {}
    recipe = Recipe(
        output_dir="x", train=valid, valid=valid, seed=1, batch_size=4, weight_decay=0.0,
        stages=[Stage(**STAGE)], model_type=name, base=str(tmp_path / "base"), config=config,
    )  # fmt: skip
    model, tokenizer = new_model(recipe)
    assert type(model) is model_class(name, "llama")
    module = BACKBONE_LOSSES[name](model, recipe.loss, tokenizer)
    rows, stage = load_dataset(valid)[:4], recipe.stages[0]
    model.config.prompt_prefix = "<|endoftext|>"  # training reads what sampling does
    batch = next(batches(rows, tokenizer, module.format_row, stage, 4, "seed", "all"))
    prompts = {
        tuple(ids[:n].tolist()) for ids, n in zip(batch.prompts, batch.prompt_lengths, strict=True)
    }
    assert prompts <= set(map(tuple, model.encode(tokenizer, [row["question"] for row in rows])))
    rng_keys = rng.row_keys(1, torch.arange(4), torch.zeros(4, dtype=torch.int64), "cpu")
    module(batch, stage, rng_keys)[0].backward()
    for key, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, key
