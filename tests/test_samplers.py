"""Samplers beyond the paper's: perturbed weights, sampled tokens, and several at once.

tests/test_engine.py and tests/test_rollouts.py compare sampling under them with the reference.
"""

from collections import Counter, defaultdict

import pytest
import torch

from src.runs.arguments import AnnotationArguments, InferenceArguments, RewardArguments
from src.sampling import rng
from src.sampling.engine import sample, think
from src.sampling.samplers import TARGETS, Sampling, weight_noise
from src.sampling.samplers.tokens import Tokens
from src.sampling.trajectories import Request
from src.search.best_of_n import sample_pool
from tests.conftest import RANDOM, random_coconut
from tests.reference import sample_one

pytestmark = pytest.mark.quick

PROMPTS = [[20, 21, 22, 23, 24], [30, 31, 32]]
MODELS = {"GPT-2": "coconut", "LLaMA": "colar"}
SVP = Sampling("svp", svp_alpha=0.5)


def request(sampling, n=2, thoughts=3, answer=4, prompts=PROMPTS):
    return Request(prompts, range(len(prompts)), n, thoughts, answer, 5, sampling)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model", MODELS)
def test_every_linear_map_can_be_perturbed(model, target):
    model = RANDOM[MODELS[model]]()[0]
    for sampling in (
        Sampling("svp", svp_alpha=0.5, svp_target=target),
        Sampling("weight_noise", weight_noise_std=0.1, weight_noise_target=target),
    ):
        sampled = sample(model, request(sampling, n=1))
        for q, prompt in enumerate(PROMPTS):
            with torch.no_grad():
                thoughts, tokens = sample_one(model, prompt, q, 0, 3, 4, 5, sampling)
            assert tokens == sampled.tokens[q][0]
            torch.testing.assert_close(
                thoughts, sampled.thoughts[q, 0, : len(thoughts)], rtol=1e-3, atol=1e-3
            )


def test_the_noise_of_a_weight_is_made_in_parts_of_bounded_size(coconut, monkeypatch):
    sampling = Sampling("weight_noise", weight_noise_std=0.1)
    whole = sample(coconut[0], request(sampling, n=4))
    sizes, normal = [], rng.normal

    def counted(keys, site, width):
        sizes.append((numbers := normal(keys, site, width)).numel())
        return numbers

    monkeypatch.setattr(rng, "normal", counted)
    monkeypatch.setitem(weight_noise._NUMBERS, "cpu", 32 * 10)
    parts = sample(coconut[0], request(sampling, n=4))
    assert max(sizes) == 32 * 10  # of the 32 x 32 numbers of a weight
    torch.testing.assert_close(parts.thoughts, whole.thoughts, rtol=1e-4, atol=1e-4)
    assert parts.tokens == whole.tokens


def test_singular_factors_follow_their_weights_and_are_no_part_of_the_checkpoint():
    model, before = random_coconut()[0], list(random_coconut()[0].state_dict())
    sampled = sample(model, request(SVP))
    assert list(model.state_dict()) == before
    factors = model.singular_factors["attn_v"]
    sample(model, request(SVP))
    assert model.singular_factors["attn_v"] is factors  # computed once
    exact = sample(model.double(), request(SVP))
    torch.testing.assert_close(exact.thoughts.float(), sampled.thoughts, rtol=1e-2, atol=1e-2)
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.weight.mul_(1.1)
    other = sample(model, request(SVP)).thoughts
    assert not torch.allclose(other, exact.thoughts, rtol=1e-2, atol=1e-2)
    assert (factors.u.gather(1, factors.u.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_tokens_are_as_frequent_as_the_softmax_says(coconut, temperature):
    model, count = coconut[0], 20_000
    sampling = Sampling("tokens", temperature=temperature)
    tokens = sample(model, request(sampling, count, answer=1, prompts=PROMPTS[:1])).tokens[0]
    eos = model.config.eos_token_id
    drawn = torch.tensor([ids[0] if ids else eos for ids in tokens])
    shares = torch.bincount(drawn, minlength=model.config.vocab_size) / count
    with torch.no_grad():
        ids = torch.tensor(PROMPTS[:1])
        x = model.embed(ids)
        for _ in range(3):
            x = torch.cat((x, model.base_model(inputs_embeds=x).last_hidden_state[:, -1:]), dim=1)
        x = torch.cat((x, model.embed(torch.tensor([[model.config.end_latent_token_id]]))), dim=1)
        p = (model(inputs_embeds=x).logits[0, -1] / temperature).softmax(-1)
    assert ((shares - p).abs() < 5 * (p * (1 - p) / count).sqrt() + 1e-3).all()


def test_the_nucleus_is_the_smallest_set_of_at_least_its_mass():
    logits = torch.tensor([0.15, 0.4, 0.05, 0.3, 0.1]).log().expand(1000, -1)
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    for top_p, kept in ((0.3, {1: 1}), (0.6, {1: 4 / 7, 3: 3 / 7}), (0.75, {1: 8, 3: 6, 0: 3})):
        tokens = Tokens(1.0, top_p)._draw(logits, uniform)
        shares = {token: (tokens == token).double().mean() for token in tokens.unique().tolist()}
        total = sum(kept.values())
        assert shares == pytest.approx({k: v / total for k, v in kept.items()}, abs=2e-3)


def test_with_sampled_tokens_alone_the_thoughts_are_computed_once(coconut, monkeypatch):
    rows, step = [], type(coconut[0]).step

    def counted(model, x, *inputs):
        rows.append(len(x))
        return step(model, x, *inputs)

    monkeypatch.setattr(type(coconut[0]), "step", counted)
    with torch.inference_mode():
        state, thoughts = think(coconut[0], request(Sampling("tokens"), n=7))
    assert rows == [2, 2] and len(state) == 14
    assert torch.equal(thoughts[:7], thoughts[:1].expand(7, -1, -1))
    counters = defaultdict(Counter)
    sample_pool(coconut[0], request(Sampling("tokens")), [3, 7], counters)
    assert [counters[size]["latent_steps"] for size in (3, 7)] == [2 * 3, 2 * 3]


def test_mixed_samplers_give_the_thoughts_of_one_and_the_tokens_of_the_other(coconut):
    noise = sample(coconut[0], request(Sampling("noise", noise_std=0.5), 6))
    both = sample(coconut[0], request(Sampling("tokens+noise", noise_std=0.5, temperature=2), 6))
    assert torch.equal(both.thoughts, noise.thoughts)
    assert both.tokens != noise.tokens
    assert Sampling("tokens+noise").samplers == Sampling("noise+tokens").samplers


def test_generate_takes_any_sampler(coconut):
    model, settings = coconut[0], {"svp_alpha": 0.3, "temperature": 2.0, "top_p": 0.9}
    flags = settings | {"do_sample": True, "num_return_sequences": 2, "seed": 5}
    sequences = model.generate(
        torch.tensor(PROMPTS[:1]), sampling_by="svp+tokens", latent_length=3, max_new_tokens=4,
        **flags,
    )  # fmt: skip
    sampled = sample(model, request(Sampling("svp+tokens", **settings), prompts=PROMPTS[:1]))
    first = len(PROMPTS[0]) + 3 + 1
    for row, ids in zip(sequences.tolist(), sampled.tokens[0], strict=True):
        assert row[first : first + len(ids)] == ids


def test_names_of_samplers_and_strengths_by_purpose():
    strengths = {"noise_std": 0.5, "temperature": 1.0, "top_p": 1.0}
    mixed = InferenceArguments(sampling_by="tokens+noise", **strengths)
    assert mixed.sampling_by == "noise+tokens"
    assert mixed.sampler_name == "noise-0.5+tokens-1.0"
    assert mixed.sampling() == Sampling("noise+tokens", noise_std=0.5)
    svp = InferenceArguments(sampling_by="svp", svp_prompt=False)
    assert svp.run_name != InferenceArguments(sampling_by="svp").run_name
    tuned = InferenceArguments(sampling_by="noise+tokens", temperature=0.5, tuned_for="vote")
    assert tuned.noise_std == InferenceArguments(sampling_by="noise", tuned_for="vote").noise_std


@pytest.mark.parametrize(
    ("cls", "flags", "fault"),
    [
        (AnnotationArguments, {"sampling_by": "tokens"}, "64: .* same thoughts; 0 labels"),
        (
            RewardArguments,
            {"sampling_by": "tokens", "prm_mode": "beam_search"},
            "beam_search: all trajectories of a question would have the same thoughts",
        ),
        (InferenceArguments, {"sampling_by": "noise+loud"}, "several joined by"),
        (InferenceArguments, {"sampling_by": "svp+svp"}, "samplers that differ"),
        (InferenceArguments, {"sampling_by": "noise", "top_p": 0.9}, "--top_p has no effect"),
        (InferenceArguments, {"sampling_by": "tokens", "temperature": -1.0}, "temperature must"),
        (InferenceArguments, {"sampling_by": "tokens", "top_p": 0.0}, "top_p must be in"),
        (InferenceArguments, {"sampling_by": "svp", "svp_alpha": float("nan")}, "svp_alpha must"),
        (InferenceArguments, {"sampling_by": "svp", "svp_target": "gate"}, "svp_target must be"),
    ],
)
def test_flags_that_make_no_sense_are_refused(cls, flags, fault):
    with pytest.raises(ValueError, match=fault):
        cls(**flags)
