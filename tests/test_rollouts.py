"""Rollouts, candidates and beams against plain ways to compute them."""

from dataclasses import replace

import pytest
import torch

from src.models.latent_rm import thought_mask
from src.sampling import memory, rng, rollouts
from src.sampling.engine import sample
from src.sampling.rollouts import annotate
from src.sampling.samplers import _NOISE_SITE, Sampling
from src.sampling.trajectories import Request
from src.search.bayesian_vote import LikelihoodPool, sample_with_state
from src.search.beam_search import beam_search
from tests.conftest import random_reward_model
from tests.reference import continue_one, key_of, rollout_key, thought_of

PROMPTS, QUESTIONS = [[20, 21, 22, 23, 24], [30, 31, 32], [40, 41, 42, 43]], [7, 3, 11]
NOISE = Sampling("noise", noise_std=0.5)
DROPOUT = Sampling("dropout", dropout_p=0.3)
SAMPLERS = {
    "noise": NOISE,
    "dropout": DROPOUT,
    "dropout_embedding": Sampling("dropout", dropout_p=0.3, dropout_embedding=True),
    "dropout_shared_prompt": Sampling("dropout", dropout_p=0.3, dropout_prompt=False),
}


def request(sampling, n=3, questions=slice(None), **changes):
    settings = {"latent_length": 4, "max_new_tokens": 5, "seed": 5} | changes
    return Request(PROMPTS[questions], QUESTIONS[questions], n, sampling=sampling, **settings)


def sample_with_likelihoods(model, asked, parse):
    trajectories, state = sample_with_state(model, asked)
    pool = LikelihoodPool(model, parse, len(asked.prompts))
    pool.add(asked, state, trajectories)
    return trajectories, pool.likelihoods()


def odd(q, ids):
    """A judge that random answers please about as often as not."""
    return sum(ids) % 3 == 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_labels_are_those_of_plain_completions(backbone, name):
    """Prompt and prefix computed anew for every completion, one by one."""
    model, sampling, m = backbone[0], SAMPLERS[name], 3
    found = annotate(model, request(sampling), m, odd)
    assert not found.skipped.all()
    keeps_dropping = replace(sampling, dropout_answer=True)
    for q, prompt in enumerate(PROMPTS):
        for n in range(3):
            key, thoughts = key_of(5, QUESTIONS[q], n), found.trajectories.thoughts[q, n]
            assert odd(q, found.trajectories.tokens[q][n]) == found.corrects[q, n]
            if found.skipped[q]:
                continue
            length = int(found.trajectories.num_thoughts[q, n])
            assert not found.estimations[q, n, length:].any()
            for t in range(1, length + 1):
                prefix, right = list(thoughts[:t]), 0
                for k in range(m):
                    new_key = rollout_key(key, t, k)
                    right += odd(
                        q,
                        continue_one(model, prompt, prefix, key, new_key, 4, 5, keeps_dropping)[1],
                    )
                assert found.estimations[q, n, t - 1] == pytest.approx(right / m)


@pytest.mark.parametrize("name", SAMPLERS)
def test_labels_do_not_depend_on_the_batch_or_the_memory(backbone, name, monkeypatch):
    whole = annotate(backbone[0], request(SAMPLERS[name]), 5, odd)
    monkeypatch.setitem(memory.WORK_BYTES, "cpu", 7 * 70_000)  # some 7 rows
    for q in range(3):
        alone = annotate(backbone[0], request(SAMPLERS[name], questions=slice(q, q + 1)), 5, odd)
        assert torch.equal(alone.corrects[0], whole.corrects[q])
        longest = alone.estimations.shape[2]
        assert torch.equal(alone.estimations[0], whole.estimations[q, :, :longest])
        assert not whole.estimations[q, :, longest:].any()


def test_trajectories_are_those_of_the_engine(backbone):
    found = annotate(backbone[0], request(NOISE), 2, odd).trajectories
    plain = sample(backbone[0], request(NOISE))
    assert found.tokens == plain.tokens
    assert torch.equal(found.thoughts, plain.thoughts)


def test_no_rollouts_are_spent_where_all_or_none_are_right(backbone, monkeypatch):
    monkeypatch.setattr(rollouts, "_roll_out", None)
    for outcome in (True, False):
        found = annotate(backbone[0], request(NOISE), 4, lambda q, ids, right=outcome: right)
        assert found.skipped.all()
    without = annotate(backbone[0], request(NOISE), 0, odd)
    assert not without.skipped.any()
    there = thought_mask(without.trajectories.num_thoughts, without.estimations.shape[2])
    assert torch.equal(without.estimations, (without.corrects[..., None] & there).float())


@pytest.mark.parametrize("name", ["noise", "dropout", "dropout_shared_prompt"])
@pytest.mark.parametrize("answer", [False, True])
def test_candidates_have_the_model_s_own_probabilities(backbone, name, answer, monkeypatch):
    """Against one plain forward over the whole text; with dropout in the answer only their order."""
    model = backbone[0]
    sampling = replace(SAMPLERS[name], dropout_answer=answer) if name != "noise" else NOISE
    parse = lambda ids: len(ids) or None  # noqa: E731  a number for every answer but the empty one
    asked = request(sampling)
    trajectories, found = sample_with_likelihoods(model, asked, parse)
    assert trajectories.tokens == sample(model, asked).tokens
    monkeypatch.setitem(memory.WORK_BYTES, "cpu", 1)  # a row at a time
    for q, candidates in enumerate(found):
        answers = trajectories.tokens[q]
        assert candidates.answers == list(dict.fromkeys(parse(ids) for ids in answers if ids))
        alone = sample_with_likelihoods(model, request(sampling, questions=slice(q, q + 1)), parse)[
            1
        ][0]
        torch.testing.assert_close(alone.log_probs, candidates.log_probs, rtol=1e-4, atol=1e-4)
        if name != "noise":
            continue
        for k, number in enumerate(candidates.answers):
            first = next(n for n, ids in enumerate(answers) if parse(ids) == number)
            text = answers[first] + [model.config.eos_token_id] * trajectories.finished[q][first]
            for n in range(3):
                length = int(trajectories.num_thoughts[q, n])
                x = torch.cat((
                    model.embed(torch.tensor(PROMPTS[q])), trajectories.thoughts[q, n, :length],
                    model.embed(torch.tensor([model.config.end_latent_token_id, *text[:-1]])),
                ))  # fmt: skip
                logits = model(inputs_embeds=x[None]).logits[0, -len(text) :].log_softmax(-1)
                plain = logits.gather(1, torch.tensor(text)[:, None]).sum()
                torch.testing.assert_close(
                    candidates.log_probs[n, k], plain.float(), rtol=1e-3, atol=1e-3
                )


def test_candidates_of_a_larger_pool_begin_with_those_of_a_smaller(backbone):
    parse = lambda ids: len(ids) or None  # noqa: E731
    small = sample_with_likelihoods(backbone[0], request(NOISE, n=2), parse)[1]
    large = sample_with_likelihoods(backbone[0], request(NOISE, n=6), parse)[1]
    for a, b in zip(small, large, strict=True):
        count = len(a.answers)
        assert b.answers[:count] == a.answers
        torch.testing.assert_close(b.log_probs[:2, :count], a.log_probs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["noise", "dropout", "dropout_shared_prompt"])
def test_one_beam_with_one_candidate_is_sample_0(backbone, name):
    model, sampling = backbone[0], SAMPLERS[name]
    beams = beam_search(model, random_reward_model(model), request(sampling), 1, 1)
    plain = sample(model, request(sampling, n=1))
    assert beams.trajectories.tokens == plain.tokens
    torch.testing.assert_close(beams.trajectories.thoughts, plain.thoughts, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["noise", "dropout", "dropout_shared_prompt"])
@pytest.mark.parametrize("shape", [(1, 4), (2, 3), (4, 1)])
def test_beams_do_not_depend_on_the_batch_and_carry_their_scores(backbone, name, shape):
    """The survivors' scores are the reward model's on their thoughts: caches moved with the beams."""
    model, sampling, rm = backbone[0], SAMPLERS[name], random_reward_model(backbone[0])
    whole = beam_search(model, rm, request(sampling), *shape)
    for q, prompt in enumerate(PROMPTS):
        alone = request(sampling, questions=slice(q, q + 1))
        found = beam_search(model, rm, alone, *shape)
        assert found.trajectories.tokens[0] == whole.trajectories.tokens[q]
        thoughts, ids = whole.trajectories.thoughts[q : q + 1], torch.tensor([prompt])
        with torch.no_grad():
            lengths = whole.trajectories.num_thoughts[q : q + 1]
            scores = rm(ids, torch.ones_like(ids), thoughts, lengths)  # (1, B, T)
        torch.testing.assert_close(scores[0].float(), whole.rewards[q], rtol=1e-3, atol=1e-3)
        totals = whole.rewards[q].sum(1)
        assert torch.equal(totals, totals.sort(descending=True).values)


@pytest.mark.parametrize("score_by", ["sum", "mean"])
def test_beam_search_keeps_the_best_at_every_step(backbone, score_by):
    """Against a plain search that computes every prefix anew; beams that have ended stay as they are."""
    model, rm, (b, c) = backbone[0], random_reward_model(backbone[0]), (3, 3)
    rm.classifier.bias.data -= 1.5  # a thought costs on average: short beams stand a chance
    beams = beam_search(model, rm, request(NOISE), b, c, score_by)
    ended_early = False
    for q, prompt in enumerate(PROMPTS):
        keys = torch.stack([key_of(5, QUESTIONS[q], slot) for slot in range(b * c)])
        prefixes = [(0.0, [], False)]  # score, thoughts, ended
        for step in range(1, 5):
            scored = []
            for beam, (score, prefix, ended) in enumerate(prefixes):
                slots = range(b * c) if step == 1 else range(beam * c, (beam + 1) * c)
                if ended:
                    scored.append((score, prefix, True))
                    continue
                for slot in slots:
                    grown = _grown(model, prompt, prefix, keys[slot], step)
                    if grown is None:  # it ends here, and so do its fellows: the noise comes after
                        scored.append((score, prefix, True))
                        break
                    scored.append((_judged(rm, prompt, grown, score_by), grown, False))
            prefixes = sorted(scored, key=lambda found: -found[0])[:b]
        for n, (_, plain, _) in enumerate(prefixes):
            length = int(beams.trajectories.num_thoughts[q, n])
            assert length == len(plain)
            thoughts = beams.trajectories.thoughts[q, n, :length]
            torch.testing.assert_close(thoughts, torch.stack(plain), rtol=1e-3, atol=1e-3)
            ended_early |= length < 4
    assert ended_early == model.stops_itself


@torch.no_grad()
def _grown(model, prompt, prefix, key, step):
    """The prefix and its next thought under the given key, or None where the model ends its thinking."""
    x = torch.cat((model.embed(torch.tensor(prompt)), *(h[None] for h in prefix)))
    body = model.model if model.stops_itself else model.transformer
    hidden = body(inputs_embeds=x[None]).last_hidden_state[0, -1]
    end = model.config.end_latent_token_id
    if model.stops_itself and prefix and int(model.lm_head(hidden).argmax()) == end:
        return None
    noise = rng.normal(rng.fold(key, step), _NOISE_SITE, len(hidden))
    return [*prefix, thought_of(model, hidden) + 0.5 * noise]


@torch.no_grad()
def _judged(rm, prompt, thoughts, score_by):
    ids = torch.tensor([prompt])
    scores = rm(ids, torch.ones_like(ids), torch.stack(thoughts)[None, None])
    return float(scores.sum() if score_by == "sum" else scores.mean())
