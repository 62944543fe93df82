"""The engine against the reference (tests/reference.py), and against itself in other batches."""

import pytest
import torch

from src.sampling import memory
from src.sampling.engine import sample
from src.sampling.samplers import Sampling
from src.sampling.trajectories import Request
from tests.conftest import LLAMAS, RANDOM
from tests.reference import sample_one

QUESTIONS = [
    "Mia has 12 pens and buys 5 more. How many pens does Mia have now?",
    "How many?",
    "A train has 7 cars with 9 seats in each car. How many seats does the train have?",
    "Tom shares 12 eggs equally among 3 friends. How many eggs does each friend get?",
    "A shirt costs 9 dollars.",
]
SAMPLINGS = {
    "noise": Sampling("noise", noise_std=0.5),
    "dropout": Sampling("dropout", dropout_p=0.2),
    "shared prompt": Sampling("dropout", dropout_p=0.2, dropout_prompt=False),
    "answer too": Sampling("dropout", dropout_p=0.2, dropout_answer=True),
    "one mask": Sampling("dropout", dropout_p=0.2, dropout_mask="trajectory"),
    "attention too": Sampling("dropout", dropout_p=0.2, dropout_attention=True),
    "one mask, shared, answer, attention": Sampling(
        "dropout",
        dropout_p=0.3,
        dropout_prompt=False,
        dropout_answer=True,
        dropout_mask="trajectory",
        dropout_attention=True,
    ),
    "svp, shared prompt": Sampling("svp", svp_alpha=0.5, svp_prompt=False, svp_target="mlp_down"),
    "tokens": Sampling("tokens", temperature=1.5, top_p=0.8),
    "all": Sampling(
        "dropout+noise+svp+weight_noise+tokens",
        dropout_p=0.1,
        noise_std=0.2,
        svp_alpha=0.2,
        weight_noise_std=0.05,
        weight_noise_target="mlp_up",
    ),
}
T, A, SEED = 6, 12, 7


def prompts_of(tokenizer, model):
    return [tokenizer(model.format_prompt(question))["input_ids"] for question in QUESTIONS]


def run(model, prompts, questions, n_samples, sampling, seed=SEED, latent_length=T):
    return sample(model, Request(prompts, questions, n_samples, latent_length, A, seed, sampling))


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def assert_same(actual, expected):
    """The same Trajectories, thoughts up to rounding."""
    assert actual.tokens == expected.tokens
    assert actual.finished == expected.finished
    assert torch.equal(actual.num_thoughts, expected.num_thoughts)
    assert_close(actual.thoughts, expected.thoughts)


@pytest.mark.parametrize("name", SAMPLINGS)
def test_engine_equals_the_reference(backbone, name):
    model, tokenizer = backbone
    prompts, sampling = prompts_of(tokenizer, model), SAMPLINGS[name]
    sampled = run(model, prompts, range(len(prompts)), 3, sampling)
    answers, lengths = set(), set()
    for q, prompt in enumerate(prompts):
        for n in {0, 1, 2} - {q % 3}:  # two are enough
            thoughts, tokens = assert_equals_reference(model, sampled, prompt, q, n, sampling)
            answers.add(tuple(tokens))
            lengths.add(len(thoughts))
    assert len(answers) > len(prompts)  # the samples differ
    # A model that stops itself does so early, late, and at the limit, in one batch.
    if model.stops_itself:
        assert len(lengths) > 1 or not sampling.varies_thoughts
    else:
        assert lengths == {T}
    if model.stops_itself and name in ("noise", "dropout"):
        assert len(lengths) > 2 and T in lengths


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("kind", LLAMAS[1:])
def test_the_other_architecture_equals_the_reference(kind, name):
    """In a batch, and alone."""
    model, tokenizer = RANDOM[kind]()
    prompts, sampling = prompts_of(tokenizer, model)[:3], SAMPLINGS[name]
    sampled = run(model, prompts, range(3), 2, sampling)
    for q, prompt in enumerate(prompts):
        for n in range(2):
            assert_equals_reference(model, sampled, prompt, q, n, sampling)
    alone = run(model, prompts[1:2], [1], 2, sampling)
    assert alone.tokens[0] == sampled.tokens[1]
    assert_close(alone.thoughts_of(0), sampled.thoughts_of(1))


@torch.no_grad()
def assert_equals_reference(model, sampled, prompt, q, n, sampling):
    """Compares sample ``n`` of question ``q``; returns its thoughts and answer ids."""
    thoughts, tokens = sample_one(model, prompt, q, n, T, A, SEED, sampling)
    num_thoughts = int(sampled.num_thoughts[q, n])
    assert num_thoughts == len(thoughts)
    assert_close(sampled.thoughts[q, n, :num_thoughts], thoughts)
    assert not sampled.thoughts[q, n, num_thoughts:].any()
    assert sampled.tokens[q][n] == tokens
    assert sampled.finished[q][n] == (len(tokens) < A)
    return thoughts, tokens


def test_greedy_decoding_equals_the_reference(backbone):
    model, tokenizer = backbone
    prompts = prompts_of(tokenizer, model)
    sampled = run(model, prompts, range(len(prompts)), 1, Sampling())
    with torch.no_grad():
        for q, prompt in enumerate(prompts):
            _, tokens = sample_one(model, prompt, q, 0, T, A, SEED, Sampling())
            assert sampled.tokens[q][0] == tokens


@pytest.mark.parametrize("name", SAMPLINGS)
def test_a_question_does_not_depend_on_its_batch(backbone, name):
    model, tokenizer = backbone
    prompts, sampling = prompts_of(tokenizer, model), SAMPLINGS[name]
    together = run(model, prompts, [3, 1, 4, 9, 5], 4, sampling)
    for q, question in enumerate([3, 1, 4, 9, 5]):
        alone = run(model, [prompts[q]], [question], 4, sampling)
        assert alone.tokens[0] == together.tokens[q]
        assert torch.equal(alone.num_thoughts[0], together.num_thoughts[q])
        assert_close(alone.thoughts_of(0), together.thoughts_of(q))


@pytest.mark.parametrize("name", SAMPLINGS)
def test_few_samples_are_the_first_of_many(backbone, name):
    model, tokenizer = backbone
    prompts, sampling = prompts_of(tokenizer, model), SAMPLINGS[name]
    few = run(model, prompts, range(5), 4, sampling)
    many = run(model, prompts, range(5), 20, sampling)
    assert few.tokens == [answers[:4] for answers in many.tokens]
    assert torch.equal(few.num_thoughts, many.num_thoughts[:, :4])
    longest = few.thoughts.shape[2]
    assert_close(few.thoughts, many.thoughts[:, :4, :longest])


def test_zero_noise_or_dropout_is_greedy(backbone):
    model, tokenizer = backbone
    prompts = prompts_of(tokenizer, model)
    greedy = run(model, prompts, range(5), 1, Sampling())
    assert_same(run(model, prompts, range(5), 1, Sampling("noise", noise_std=0.0)), greedy)
    assert_same(run(model, prompts, range(5), 1, Sampling("dropout", dropout_p=0.0)), greedy)
    assert_same(run(model, prompts, range(5), 1, Sampling("svp+weight_noise")), greedy)
    assert_same(run(model, prompts, range(5), 1, Sampling("tokens", temperature=0.0)), greedy)


@pytest.mark.parametrize("name", ["noise", "dropout"])
def test_thoughts_depend_on_seed_and_question_id(backbone, name):
    model, tokenizer = backbone
    prompts, sampling = prompts_of(tokenizer, model), SAMPLINGS[name]
    base = run(model, prompts, range(5), 2, sampling).thoughts
    assert not torch.equal(base, run(model, prompts, range(5), 2, sampling, seed=8).thoughts)
    assert not torch.equal(base, run(model, prompts, range(1, 6), 2, sampling).thoughts)


def test_reading_prompts_in_chunks_changes_nothing(backbone, monkeypatch):
    model, tokenizer = backbone
    prompts = prompts_of(tokenizer, model)
    whole = run(model, prompts, range(5), 4, SAMPLINGS["dropout"])
    monkeypatch.setitem(memory.WORK_BYTES, "cpu", 1)
    assert_same(run(model, prompts, range(5), 4, SAMPLINGS["dropout"]), whole)


@pytest.mark.parametrize("name", ["noise", "dropout"])
def test_dropping_finished_rows_changes_nothing(backbone, name, monkeypatch):
    model, tokenizer = backbone
    prompts = prompts_of(tokenizer, model)
    dropped = run(model, prompts, range(5), 8, SAMPLINGS[name])
    lengths = {len(ids) for answers in dropped.tokens for ids in answers}
    assert len(lengths) > 2  # rows finish at different times
    monkeypatch.setattr("src.sampling.answers.COMPACT_BELOW", 0.0)
    assert_same(run(model, prompts, range(5), 8, SAMPLINGS[name]), dropped)


def test_a_single_thought_equals_the_reference(backbone):
    model, tokenizer = backbone
    prompts = prompts_of(tokenizer, model)
    sampling = SAMPLINGS["noise"]
    sampled = run(model, prompts, range(5), 2, sampling, latent_length=1)
    with torch.no_grad():
        assert sampled.tokens[2][1] == sample_one(model, prompts[2], 2, 1, 1, A, SEED, sampling)[1]


def test_impossible_requests_are_refused(backbone):
    model, tokenizer = backbone
    prompts = prompts_of(tokenizer, model)
    with pytest.raises(ValueError, match="all trajectories are equal"):
        run(model, prompts, range(5), 2, Sampling())
    with pytest.raises(ValueError, match="lower max_new_tokens"):
        sample(model, Request(prompts, range(5), 1, 6, 90, 0, Sampling()))
    with pytest.raises(ValueError, match="at least one each"):
        run(model, prompts, range(5), 1, Sampling(), latent_length=0)
    with pytest.raises(ValueError, match="a prompt is empty"):
        run(model, [[]], [0], 1, Sampling())
    for wrong in (
        {"method": "dropuot"},
        {"dropout_p": 1.0},
        {"noise_std": -1.0},
        {"dropout_mask": "x"},
    ):
        with pytest.raises(ValueError, match="must be"):
            Sampling(**wrong)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", SAMPLINGS)
def test_cuda_equals_cpu(backbone, name):
    model, tokenizer = backbone
    prompts, sampling = prompts_of(tokenizer, model), SAMPLINGS[name]
    cpu = run(model, prompts, range(5), 8, sampling)
    cuda = run(model.to("cuda"), prompts, range(5), 8, sampling)
    model.to("cpu")
    assert cuda.tokens == cpu.tokens
    torch.testing.assert_close(cuda.thoughts.cpu(), cpu.thoughts, rtol=1e-3, atol=1e-3)
