"""Beam search, annotation, and LatentRM's scoring and training, beside the plain ways."""

from itertools import count

import torch

from benchmarks import plain
from benchmarks.bench import free
from benchmarks.counts import (
    annotation_passes,
    beam_search_passes,
    scoring_passes,
    training_bytes,
    training_operations,
)
from benchmarks.models import build_reward_model, random_prompts
from benchmarks.timing import Call, alternate
from src.models.precision import DTYPES
from src.sampling.rollouts import annotate
from src.search.beam_search import SearchPlan, beam_search
from src.search.guides import RewardGuide
from src.training.attention import training_attention
from src.training.losses.latent_rm import contrastive


def beams(bench):
    """Beam search with noise."""
    questions, num_beams, proposals = bench.sizes.beams
    request = bench.request("noise", questions, num_beams * proposals)
    reward_model = build_reward_model(bench.sizes.shape, bench.sizes.dtype, bench.device)
    plain_arguments = (bench.model, reward_model, request, num_beams, proposals)
    plan = SearchPlan(num_beams, proposals)
    arguments = (bench.model, RewardGuide(reward_model), request, plan)
    calls = {
        "ours": Call(lambda: beam_search(*arguments)),
        "plain": Call(lambda: plain.beam_search(*plain_arguments)),
    }
    generator, rewards = beam_search_passes(request, num_beams, proposals)
    counted = bench.count((bench.model, generator), (reward_model, rewards))
    sizes = {"questions": questions, "beams": num_beams, "proposals": proposals}
    return _pair(bench, "beam search", sizes, calls, counted)


def _pair(bench, workload, sizes, calls, counted):
    """The result of "ours" beside "plain", measured in alternation."""
    timings = alternate(calls, bench.device, bench.repeats)
    return [bench.row(workload, sizes, timings["ours"], counted, {"plain": timings["plain"]})]


def annotation(bench):
    """Trajectories with noise, and rollouts from each of their thoughts.

    Every second answer counts as right, so that no question is skipped.
    """
    questions, n_samples, n_rollouts = bench.sizes.annotation
    request, model = bench.request("noise", questions, n_samples), bench.model

    def ours():
        answers = count()
        annotate(model, request, n_rollouts, lambda q, ids: next(answers) % 2 == 0)

    calls = {
        "ours": Call(ours),
        "plain": Call(lambda: plain.annotate(model, request, n_rollouts)),
    }
    sizes = {"questions": questions, "n_samples": n_samples, "rollouts": n_rollouts}
    counted = bench.count((model, annotation_passes(request, n_rollouts)))
    return _pair(bench, "annotation", sizes, calls, counted)


def shared_scores(model, ids, thoughts):
    """Rewards (Q, N, T), the prompts ids (Q, L) read once for the trajectories (Q, N, T, D)."""
    return model(ids, torch.ones_like(ids), thoughts)


SCORES = {"ours": shared_scores, "plain": plain.scores}


def _pool(bench, model, questions, n_samples):
    """Prompts (Q, L) and thoughts (Q, N, T, D)."""
    ids = random_prompts(model.config, questions, bench.sizes.prompt).to(bench.device)
    shape = (questions, n_samples, bench.sizes.thoughts, model.config.hidden_size)
    return ids, torch.randn(shape, device=bench.device)


def scoring(bench):
    """Rewards of trajectories."""
    questions, n_samples = bench.sizes.scoring
    model = build_reward_model(bench.sizes.shape, bench.sizes.dtype, bench.device)
    ids, thoughts = _pool(bench, model, questions, n_samples)

    @torch.inference_mode()
    def score(scores):
        scores(model, ids, thoughts)

    calls = {name: Call(lambda scores=scores: score(scores)) for name, scores in SCORES.items()}
    passes = scoring_passes(questions, ids.shape[1], n_samples, thoughts.shape[2])
    sizes = {"questions": questions, "n_samples": n_samples}
    return _pair(bench, "LatentRM scoring", sizes, calls, bench.count((model, passes)))


def training(bench):
    """A step of training: forward, backward, AdamW; in bfloat16 by autocast, as src.train does."""
    questions, n_samples = bench.sizes.training
    free(bench.device)
    model = build_reward_model(bench.sizes.shape, "float32", bench.device).train()
    ids, thoughts = _pool(bench, model, questions, n_samples)
    labels = torch.rand(thoughts.shape[:3], device=bench.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)

    def step(scores):
        backward(model, scores, ids, thoughts, labels, bench.sizes.dtype)
        optimizer.step()
        optimizer.zero_grad()

    step(shared_scores)  # the optimizer's state is memory of the model, not of the first call
    calls = {name: Call(lambda scores=scores: step(scores)) for name, scores in SCORES.items()}
    passes = scoring_passes(questions, ids.shape[1], n_samples, thoughts.shape[2])
    counted = (training_operations(model, passes), training_bytes(model, passes))
    sizes = {"questions": questions, "n_samples": n_samples}
    return _pair(bench, "LatentRM training", sizes, calls, counted)


def backward(model, scores, ids, thoughts, labels, dtype):
    """Gradients of the contrastive loss, in the number format ``dtype``, a key of DTYPES."""
    with (
        torch.autocast(ids.device.type, DTYPES[dtype], enabled=dtype != "float32"),
        training_attention(ids.device),
    ):
        rewards = scores(model, ids, thoughts).float()
        contrastive(rewards, labels, torch.ones_like(labels, dtype=torch.bool)).mean().backward()
