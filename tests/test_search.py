"""Beam search and DVTS, with every guide, against plain ways to search."""

from copy import deepcopy

import pytest
import torch

from src.sampling import memory
from src.sampling.engine import sample
from src.sampling.samplers import DETERMINISTIC
from src.search.beam_search import SearchPlan, _Search, beam_search
from src.search.guides import AgreementGuide, LikelihoodGuide, RewardGuide
from tests.conftest import NOISE, PROMPTS, QUESTIONS, random_reward_model
from tests.reference import (
    continue_one,
    ends_thinking,
    hidden_after,
    key_of,
    noise_of,
    plain_log_probs,
    thought_of,
)
from tests.test_rollouts import SAMPLERS, SEED, A, T, parse, request, sampler_for
from utils.metrics import trajectory_score


def reward_model_for(model, scores_answer=False):
    """A random one. A thought costs something on average, so that beams may end early."""
    rm = random_reward_model(model)
    rm.classifier.bias.data -= 1.5
    rm.config.scores_answer = scores_answer
    return rm


def guide_for(model, name, lookahead=0):
    if name == "rm":
        return RewardGuide(reward_model_for(model, lookahead == "answer"), lookahead)
    return {"likelihood": LikelihoodGuide, "agreement": AgreementGuide}[name](model, parse)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("mode", ["beam_search", "dvts"])
def test_one_beam_with_one_proposal_is_sample_0(backbone, name, mode):
    model, sampling = backbone[0], sampler_for(backbone[0], name)
    guide, plan = guide_for(model, "rm"), SearchPlan(1, 1, mode)
    beams = beam_search(model, guide, request(sampling), plan).trajectories
    sampled = sample(model, request(sampling, n=1))
    assert beams.tokens == sampled.tokens
    torch.testing.assert_close(beams.thoughts, sampled.thoughts, rtol=1e-4, atol=1e-4)


PLANS = {  # and the samplers with which each is tested
    "rm": (SearchPlan(2, 3), SAMPLERS),
    "rm, one proposal": (SearchPlan(4, 1), ["dropout"]),
    "rm dvts": (SearchPlan(2, 2, "dvts", "min", 1), ["noise", "dropout_everywhere"]),
    "rm answer": (SearchPlan(2, 2, lookahead="answer"), ["noise", "svp+tokens"]),
    "likelihood dvts": (SearchPlan(2, 2, "dvts", "last", "answer"), ["noise", "dropout"]),
    "agreement": (
        SearchPlan(2, 2, "beam_search", "last", "answer"), ["svp+tokens", "dropout_shared_prompt"]
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, (_, names) in PLANS.items() for name in names]
)
def test_searches_do_not_depend_on_the_batch_or_the_memory(backbone, name, kind, monkeypatch):
    model, (plan, _) = backbone[0], PLANS[kind]
    sampling = sampler_for(model, name)
    guide = guide_for(model, kind.partition(" ")[0].strip(","), plan.lookahead)
    whole = beam_search(model, guide, request(sampling), plan)
    monkeypatch.setitem(memory.WORK_BYTES, "cpu", 1)  # a question at a time
    parts = beam_search(model, guide, request(sampling), plan)
    assert parts.trajectories.tokens == whole.trajectories.tokens
    assert parts.counts == whole.counts
    torch.testing.assert_close(parts.rewards, whole.rewards, rtol=1e-3, atol=1e-3)
    if kind.startswith("rm"):  # other rewards would mean that caches and beams are mixed up
        for q, prompt in enumerate(PROMPTS):
            thoughts, lengths = (
                x[q : q + 1] for x in (whole.trajectories.thoughts, whole.trajectories.num_thoughts)
            )
            plain = rewards_of(guide.reward_model, prompt, thoughts, lengths)[0, :, :, None]
            plain = plain[:, : thoughts.shape[2], 0].float()
            torch.testing.assert_close(plain, whole.rewards[q], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def rewards_of(rm, prompt, thoughts, lengths=None, answers=None):
    ids = torch.tensor([prompt])
    if rm.scores_answer and answers is None:
        answers = torch.zeros(*thoughts.shape[:2], 1, dtype=torch.int64)
    return rm(ids, torch.ones_like(ids), thoughts, lengths, answers)


@pytest.mark.parametrize("lookahead", [0, 1, "answer"])
@pytest.mark.parametrize("name", ["rm", "likelihood", "agreement"])
def test_proposals_are_scored_as_if_each_was_computed_from_scratch(backbone, name, lookahead):
    if name != "rm" and lookahead != "answer":
        pytest.skip("judges answers")
    model, guide = backbone[0], guide_for(backbone[0], name, lookahead)
    plan = SearchPlan(2, 2, score_by="last" if name != "rm" else "sum", lookahead=lookahead)
    one_question = request(NOISE, plan.num_slots, slice(0, 1))
    search = _Search(model, guide, one_question, plan)
    for step in range(1, T + 1):
        if step > 1:
            search.propose(step)
        pairs = zip(search.thoughts, search.state.num_thoughts, strict=True)
        prefixes = [list(thoughts[:length]) for thoughts, length in pairs]
        expected = torch.tensor(plain_scores(model, guide, 0, prefixes, plan))
        torch.testing.assert_close(search.scores.float(), expected, rtol=1e-3, atol=1e-3)
        search.keep_best(is_last=step == T)


def plain_scores(model, guide, q, prefixes, plan):
    """The scores of the proposals of question ``q``, lists of thoughts, each from scratch."""
    completed = [complete(model, q, prefix, plan.lookahead) for prefix in prefixes]
    if isinstance(guide, RewardGuide):
        return [plain_reward(guide.reward_model, model, q, *of, plan) for of in completed]
    texts = [ids + [model.config.eos_token_id] * (len(ids) < A) for _, ids in completed]

    def log_p(n, text):
        of_words = plain_log_probs(model, PROMPTS[q], torch.stack(completed[n][0]), text)
        return of_words.gather(1, torch.tensor(text)[:, None]).sum().double()

    if isinstance(guide, LikelihoodGuide):
        own = [log_p(n, text).item() for n, text in enumerate(texts)]
    else:
        pairs = list(zip(completed, texts, strict=True))
        first = {parse(ids): text for (_, ids), text in reversed(pairs)}
        of_answer = {
            number: torch.stack([log_p(n, text) for n in range(len(texts))]).exp().mean().log()
            for number, text in first.items()
        }
        own = [of_answer[parse(ids)].item() for _, ids in completed]
    return [x if parse(ids) else -100.0 for x, (_, ids) in zip(own, completed, strict=True)]


@torch.no_grad()
def complete(model, q, prefix, lookahead):
    """Thoughts with those of the lookahead, and the answer's ids, None without one."""
    if not lookahead:
        return prefix, None
    length = T if lookahead == "answer" else min(T, len(prefix) + lookahead)
    key = key_of(SEED, QUESTIONS[q], 0)  # nothing is random
    given = (model, PROMPTS[q], prefix, key, key, length, A, DETERMINISTIC)
    thoughts, ids = continue_one(*given)
    return list(thoughts), ids if lookahead == "answer" else None


def plain_reward(rm, model, q, thoughts, ids, plan):
    answers = None
    if ids is not None:
        answers = torch.tensor([[ids + [model.config.eos_token_id] * (len(ids) < A)]])
    rewards = rewards_of(rm, PROMPTS[q], torch.stack(thoughts)[None, None], None, answers)[0, 0]
    of_answer = rewards[len(thoughts)].item() if ids is not None else 0.0
    length = torch.tensor(len(thoughts))
    return trajectory_score(rewards[: len(thoughts)], length, plan.score_by, of_answer).item()


@pytest.mark.parametrize(
    "plan",
    [
        SearchPlan(3, 3),
        SearchPlan(2, 2, score_by="mean"),
        SearchPlan(1, 4, "dvts"),
        SearchPlan(2, 3, "dvts", "min"),
    ],
    ids=lambda plan: f"{plan.mode}-{plan.num_beams}-{plan.score_by}",
)
def test_searches_keep_the_best_proposals_of_every_step(backbone, plan):
    """Against a plain search, which computes every prefix anew."""
    model, guide = backbone[0], guide_for(backbone[0], "rm")
    if model.stops_itself and plan.num_slots < 9:  # too few to have one that stops early
        model = deepcopy(model)
        model.lm_head.weight.data[model.config.end_latent_token_id] *= 2
    beams, ended_early = beam_search(model, guide, request(NOISE), plan).trajectories, False
    assert beams.thoughts.shape[1] == plan.num_survivors
    for q in range(len(PROMPTS)):
        for n, plain in enumerate(plain_search(model, guide, q, plan)):
            length = int(beams.num_thoughts[q, n])
            assert length == len(plain)
            thoughts = beams.thoughts[q, n, :length]
            torch.testing.assert_close(thoughts, torch.stack(plain), rtol=1e-3, atol=1e-3)
            ended_early |= length < T
    assert ended_early == model.stops_itself


def plain_search(model, guide, q, plan):
    """The thoughts of what survives for question ``q``, in order."""
    slots, m = range(plan.num_slots), plan.num_proposals
    keys = torch.stack([key_of(SEED, QUESTIONS[q], slot) for slot in slots])
    trees = [slots[k : k + m] for k in slots[::m]] if plan.mode == "dvts" else [slots]
    survivors = []
    for tree in trees:
        beams = [([], False)]  # thoughts, ended
        for step in range(1, T + 1):
            proposals = []
            for b, beam in enumerate(beams):
                own = tree if step == 1 else tree[b * m : (b + 1) * m]
                proposals += proposals_of(model, q, beam, keys[list(own)], step)
            kept = len(tree) if plan.mode == "dvts" and step == T else plan.num_beams
            kept = 1 if plan.mode == "dvts" and step < T else kept
            scores = plain_scores(model, guide, q, [thoughts for thoughts, _ in proposals], plan)
            order = sorted(range(len(proposals)), key=lambda k: -scores[k])[:kept]
            beams = [proposals[k] for k in order]
        copies = m // len(beams) if plan.mode == "dvts" else 1  # of a tree that ended early
        survivors += [thoughts for thoughts, _ in beams] * copies
    return survivors


def proposals_of(model, q, beam, keys, step):
    """The beam with one more thought under each of ``keys``; a beam that has ended is its own."""
    prefix, ended = beam
    hidden = hidden_after(model, PROMPTS[q], prefix)
    if ended or (prefix and ends_thinking(model, hidden)):
        return [(prefix, True)]
    thought = thought_of(model, hidden)
    noisy = [thought + 0.5 * noise_of(key, step, len(hidden)) for key in keys]
    return [([*prefix, new.detach()], False) for new in noisy]
