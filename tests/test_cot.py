"""Chain of thought in words: what COCONUT and CoLaR start from."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from src.models import BACKBONES
from src.models.architectures import combine
from src.models.cot import CoT
from src.models.tokenizers import START, add_tokens, build_tokenizer
from src.training.curriculum import Stage, batches
from src.training.losses.cot import CotLoss
from tests.conftest import random_coconut, random_colar, save_checkpoint
from tests.test_training import CONFIG, ROWS, STAGE, train, write_recipe
from utils.errors import UserError

PLAIN = Stage(epochs=1, learning_rate=1e-3)


def random_cot(name):
    """A small random CoT model with the weights of a random backbone."""
    random = {"coconut": random_coconut, "colar": random_colar}[name]
    positions = {"n_positions": 192} if name == "coconut" else {"max_position_embeddings": 192}
    backbone, tokenizer = random(**positions)
    model = combine(CoT, backbone.config.model_type)(backbone.config)
    weights = {key: w for key, w in backbone.state_dict().items() if "lt_head" not in key}
    model.load_state_dict(weights)
    model.backbone = BACKBONES[name]
    return model.eval(), tokenizer


@pytest.mark.quick
@pytest.mark.parametrize("name", ["coconut", "colar"])
def test_cot_loss_equals_that_of_transformers(name):
    model, tokenizer = random_cot(name)
    module = CotLoss(model, {}, tokenizer)
    batch = next(batches(ROWS, tokenizer, module.format_row, PLAIN, 4, "seed", "pad"))
    loss, _ = module(batch, PLAIN)
    losses, count = [], 0
    for row in range(4):
        prompt = batch.prompts[row, : batch.prompt_lengths[row]]
        text = batch.texts["text"][row][batch.texts["text"][row] != -100]
        assert START not in tokenizer.decode(prompt)
        ids = torch.cat((prompt, text))[None]
        labels = ids.clone()
        labels[0, : len(prompt)] = -100
        losses.append(model(ids, labels=labels).loss * len(text))
        count += len(text)
    torch.testing.assert_close(loss, sum(losses) / count, rtol=1e-4, atol=1e-4)


@pytest.mark.quick
def test_a_problem_is_solved_if_the_written_answer_is_right(monkeypatch):
    """The steps may differ. Prompts are padded on the left for transformers' ``generate``."""
    model, tokenizer = random_cot("coconut")
    module = CotLoss(model, {}, tokenizer)
    padded = batches(ROWS, tokenizer, module.format_row, PLAIN, 4, "seed", "pad")
    batch = next(batch for batch in padded if len(set(batch.prompt_lengths.tolist())) > 1)
    golds = [tokenizer.decode(row[row != -100]) for row in batch.texts["text"]]
    answer = golds[1].split("###")[1].split("<")[0]
    written = [golds[0], f"1 + 1 = 3 ### {answer}", "### 999999", "1 + 1"]

    def generate(ids, attention_mask, **settings):
        for row, mask, prompt, length in zip(
            ids, attention_mask, batch.prompts, batch.prompt_lengths, strict=True
        ):
            assert torch.equal(row[mask.bool()], prompt[:length]) and mask[-1] == 1
        new = tokenizer(written, padding=True, add_special_tokens=False, return_tensors="pt")
        return torch.cat((ids, new["input_ids"]), dim=1)

    monkeypatch.setattr(model, "generate", generate)
    assert module.solved(batch, PLAIN).tolist() == [True, True, False, False]


@pytest.mark.quick
def test_cot_texts_are_those_of_the_official_codes():
    question, steps = "How many?", ["<<1+1=2>>", "<<2*3=6>>"]
    coconut = BACKBONES["coconut"].format_cot(question, steps, "6")
    assert coconut == ("How many?\n", "<<1+1=2>>\n<<2*3=6>>\n### 6")
    prompt, text = BACKBONES["colar"].format_cot(question, steps, "6")
    assert prompt == BACKBONES["colar"].format_prompt(question, speed=1)
    assert text == "<<1+1=2>>\n<<2*3=6>>###Answer:6"


@pytest.mark.quick
def test_new_tokens_start_as_copies_of_the_named_one():
    backbone, tokenizer = random_coconut()
    plain = build_tokenizer(type("Plain", (BACKBONES["coconut"],), {"special_tokens": {}}))
    model = type(backbone)(GPT2Config(vocab_size=len(plain), n_embd=8, n_layer=1, n_head=1))
    before = model.transformer.wte.weight.clone()
    source = plain.convert_tokens_to_ids("<<")
    add_tokens(model, plain, "<<")
    after = model.get_input_embeddings().weight
    assert len(after) == len(before) + 3
    assert torch.equal(after[: len(before)], before)
    assert all(torch.equal(row, before[source]) for row in after[len(before) :])
    assert model.get_output_embeddings().weight is after
    with pytest.raises(UserError, match="no token is new"):
        add_tokens(backbone, tokenizer, "<<")


def test_coconut_starts_from_a_cot_model_that_the_same_command_trains(tmp_path):
    plain = build_tokenizer(type("Plain", (BACKBONES["coconut"],), {"special_tokens": {}}))
    eos = plain.eos_token_id
    config = GPT2Config(vocab_size=len(plain), bos_token_id=eos, eos_token_id=eos, **CONFIG)
    save_checkpoint(tmp_path / "base", GPT2LMHeadModel(config), plain)
    valid = tmp_path / "valid.json"
    valid.write_text(json.dumps(ROWS[:20]))
    common = {"config": {}, "problems_per_epoch": 300, "model_dropout": 0.1, "valid": str(valid)}
    cot = write_recipe(
        tmp_path / "cot.yaml", model_type="cot", format_of="coconut", loss={},
        base=str(tmp_path / "base"), stages=[{"epochs": 1, "learning_rate": 1e-3}], **common,
    )  # fmt: skip
    assert train(cot).returncode == 0
    weights = load_file(tmp_path / "cot/model.safetensors")
    assert weights.keys() == load_file(tmp_path / "base/model.safetensors").keys()
    assert START not in AutoTokenizer.from_pretrained(tmp_path / "cot").get_vocab()
    written = json.loads((tmp_path / "cot/config.json").read_text())
    assert written["architectures"] == ["GPT2LMHeadModel"]
    latent = write_recipe(
        tmp_path / "latent.yaml", base=str(tmp_path / "cot"), initialize_tokens_from="<<",
        stages=[STAGE], **common,
    )  # fmt: skip
    done = train(latent)
    assert done.returncode == 0, done.stderr
    trained = load_file(tmp_path / "latent/model.safetensors")["transformer.wte.weight"]
    assert len(trained) == len(plain) + 3
    assert json.loads((tmp_path / "latent/config.json").read_text())["attn_pdrop"] == 0.1
