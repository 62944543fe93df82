"""model.generate, called as Hugging Face's models are."""

import pytest
import torch

from src.sampling.engine import sample
from src.sampling.samplers import Sampling
from src.sampling.trajectories import Request

pytestmark = pytest.mark.quick

QUESTIONS = [
    "How many pens?",
    "A train has 7 cars with 9 seats in each car. How many seats is that?",
]


def inputs(coconut, side):
    model, tokenizer = coconut
    texts = [model.format_prompt(question) for question in QUESTIONS]
    tokenizer.padding_side = side
    return tokenizer(texts, padding=True, return_tensors="pt")


def test_generate_returns_what_the_engine_samples(coconut):
    model, tokenizer = coconut
    batch = inputs(coconut, "left")
    settings = {"do_sample": True, "sampling_by": "noise", "noise_std": 0.5, "seed": 3}
    out = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        num_return_sequences=3,
        max_new_tokens=9,
        return_dict_in_generate=True,
        **settings,
    )
    prompts = tokenizer([model.format_prompt(question) for question in QUESTIONS])["input_ids"]
    direct = sample(model, Request(prompts, [0, 1], 3, 6, 9, 3, Sampling("noise", noise_std=0.5)))
    torch.testing.assert_close(out.thoughts, direct.thoughts)
    width = batch["input_ids"].shape[1]
    assert out.sequences.shape[0] == 6
    for row, sequence in enumerate(out.sequences):
        assert torch.equal(sequence[:width], batch["input_ids"][row // 3])
        latent = tokenizer.convert_ids_to_tokens(sequence[width : width + 7].tolist())
        assert latent == ["<|latent|>"] * 6 + ["<|end-latent|>"]
        answer = tokenizer.decode(sequence[width:], skip_special_tokens=True)
        tokens = direct.tokens[row // 3][row % 3]
        assert answer == tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("sampling_by", ["noise", "dropout"])
def test_padding_side_changes_nothing(coconut, sampling_by):
    model, _ = coconut
    settings = {"do_sample": True, "sampling_by": sampling_by, "noise_std": 0.5, "dropout_p": 0.2}
    settings |= {"num_return_sequences": 4, "return_dict_in_generate": True}
    left = model.generate(**inputs(coconut, "left"), **settings)
    right = model.generate(**inputs(coconut, "right"), **settings)
    assert torch.equal(left.thoughts, right.thoughts)
    width = inputs(coconut, "left")["input_ids"].shape[1]
    assert torch.equal(left.sequences[:, width:], right.sequences[:, width:])


def test_generate_is_greedy_by_default_and_refuses_unknown_or_useless_keywords(coconut):
    model, _ = coconut
    batch = inputs(coconut, "left")
    assert model.generate(**batch).shape[0] == 2
    with pytest.raises(ValueError, match="all trajectories are equal"):
        model.generate(**batch, num_return_sequences=2)
    with pytest.raises(TypeError):
        model.generate(**batch, do_sample=True, noize_std=1.0)


def test_question_ids_key_the_samples_and_count_up_by_default(coconut):
    model, _ = coconut
    batch = inputs(coconut, "left")
    settings = {"do_sample": True, "num_return_sequences": 4, "return_dict_in_generate": True}
    base = model.generate(**batch, **settings).thoughts
    assert len({tuple(row.flatten().tolist()) for row in base[0]}) == 4  # they differ
    swapped = model.generate(**batch, **settings, question_ids=torch.tensor([1, 0])).thoughts
    assert not torch.equal(swapped[0], base[0])
    same = model.generate(**batch, **settings, question_ids=[0, 1]).thoughts
    assert torch.equal(same, base)
    with pytest.raises(ValueError, match="2 prompts, but 3 question ids"):
        model.generate(**batch, question_ids=[0, 1, 2])


def test_finished_sequences_are_padded_with_end_of_text(coconut, monkeypatch):
    model, tokenizer = coconut
    monkeypatch.setattr(model.config, "pad_token_id", None)  # as in GPT-2
    out = model.generate(**inputs(coconut, "left"), do_sample=True, num_return_sequences=16)
    answers = out[:, inputs(coconut, "left")["input_ids"].shape[1] + 7 :]
    ended = (answers == tokenizer.eos_token_id).any(1)
    assert ended.any()
    for row in answers[ended]:
        first = int((row == tokenizer.eos_token_id).nonzero()[0])
        assert (row[first:] == tokenizer.eos_token_id).all()
