"""LatentRM-guided beam search over latent thoughts (You et al., arXiv 2510.07745, section 4).

At each latent step C stochastic continuations of each of B beams are scored by their cumulative
reward and the best B go on. Slot ``b * C + c`` draws the random numbers of sample ``b * C + c``, so
one beam with one candidate is sample 0.
"""

from dataclasses import dataclass, replace

import torch

from src.sampling.engine import Trajectories, decode, read_thought, start
from src.sampling.samplers import add_noise


@dataclass
class Beams:
    """trajectories: the B survivors of each question, best first.

    scores (Q, B, T): r_t of their thoughts. passes: latent forward passes of the generator.
    """

    trajectories: Trajectories
    scores: torch.Tensor
    passes: int


@torch.inference_mode()
def beam_search(model, request, num_beams, num_candidates, scorer):
    """The best ``num_beams`` trajectories of each question of ``request`` (its n_samples counts not).

    scorer: a src.models.latent_rm.PrefixScorer. One mask for a whole trajectory (dropout_mask) has no
    meaning here: a beam changes its slot, and with it its numbers, at every step.
    """
    slots = replace(request, n_samples=num_beams * num_candidates)
    state = start(model, slots)
    keys, passes = state.keys, len(state.keys)
    scorer.begin(request.prompts, request.latent_length)
    thoughts = scores = parents = None  # thoughts (R, t, D) and scores (R, t) of all slots
    for step in range(1, request.latent_length + 1):
        if step > 1:
            state, hidden, read = _branch(model, slots, state, keys, step - 1, num_candidates)
            state.thought = add_noise(slots.sampling, model.to_thought(hidden), keys, step)  # (R, D)
            parents = torch.arange(len(keys), device=keys.device) // num_candidates  # (R,)
            passes += read
        reward = scorer.extend(state.thought, parents)  # (R,)
        thoughts = _append(thoughts, parents, state.thought)
        scores = _append(scores, parents, reward)
        keep = _best(scores.sum(1), len(request.prompts), num_beams)  # (Q * B,)
        thoughts, scores = thoughts[keep], scores[keep]
        scorer.select(keep)
        state = _survivors(slots, state, keep)
    beams = replace(request, n_samples=num_beams)
    trajectories = decode(model, beams, state, thoughts)
    return Beams(trajectories, scores.unflatten(0, (-1, num_beams)), passes)


def _branch(model, request, state, keys, step, count):
    """Every beam ``count`` times, the hidden states (R, D) at its thought number ``step``, and how many
    rows were read for them.

    With dropout each branch reads the thought under masks of its own; otherwise a beam reads once.
    """
    repeat = torch.arange(len(state.keys), device=keys.device).repeat_interleave(count)
    if not request.sampling.drops:
        hidden = read_thought(model, request.sampling, state, step)  # (Q * B, D)
    branches = replace(
        state,
        thought=state.thought[repeat],
        keys=keys,
        lengths=state.lengths[repeat],
        own=state.own.select(repeat),
    )
    if not request.sampling.drops:
        return branches, hidden[repeat], len(hidden)
    hidden = read_thought(model, request.sampling, branches, step)
    return branches, hidden, len(hidden)


def _append(past, parents, new):
    if past is None:
        return new[:, None]
    return torch.cat((past[parents], new[:, None]), dim=1)


def _best(scores, questions, num_beams):
    """Rows of the best beams of each question, best first; the first of equals wins."""
    per_question = scores.view(questions, -1)
    order = per_question.argsort(dim=1, descending=True, stable=True)[:, :num_beams]  # (Q, B)
    offset = torch.arange(questions, device=scores.device)[:, None] * per_question.shape[1]
    return (order + offset).flatten()


def _survivors(request, state, keep):
    """The state of the kept rows; a prompt that only some rows read goes or stays with them."""
    prompt = state.prompt
    if request.sampling.own_prompts:
        prompt = prompt.select(keep // (len(state.keys) // prompt.groups))
    return replace(
        state,
        thought=state.thought[keep],
        keys=state.keys[keep],
        lengths=state.lengths[keep],
        prompt=prompt,
        own=state.own.select(keep),
    )
