"""LatentRM-guided beam search over latent thoughts (You et al., arXiv 2510.07745, section 4).

At each latent step C stochastic continuations of each of B beams are scored by their cumulative
reward and the best B go on. Slot ``b * C + c`` draws the random numbers of sample ``b * C + c``, so
one beam with one candidate is sample 0.
"""

from dataclasses import dataclass, replace

import torch

from src.sampling.engine import Trajectories, decode, read_thought, start, stops
from src.sampling.samplers import add_noise
from utils.metrics import trajectory_score


@dataclass
class Beams:
    """trajectories: the B survivors of each question, best first.

    scores (Q, B, T): r_t of their thoughts, 0 where there is none. passes: latent forward passes of the
    generator.
    """

    trajectories: Trajectories
    scores: torch.Tensor
    passes: int


@torch.inference_mode()
def beam_search(model, request, num_beams, num_candidates, scorer, score_by="sum"):
    """The best ``num_beams`` trajectories of each question of ``request`` (its n_samples counts not).

    scorer: a src.models.latent_rm.PrefixScorer. score_by: "sum" or "mean" of the rewards of the thoughts
    that a beam has. Where the model ends the latent phase itself, a beam that has ended stays, as one
    candidate, until better ones push it out. One mask for a whole trajectory (dropout_mask) has no
    meaning here: a beam changes its slot, and with it its numbers, at every step.
    """
    slots = replace(request, n_samples=num_beams * num_candidates)
    state = start(model, slots)
    keys, passes = state.keys, len(state.keys)
    scorer.begin(request.prompts, request.latent_length)
    thoughts = scores = parents = None  # thoughts (R, t, D) and scores (R, t) of all slots
    ended = torch.zeros_like(state.counts, dtype=torch.bool)  # (R,)
    twin = ended  # slots whose beam has another slot that is the same
    for step in range(1, request.latent_length + 1):
        if step > 1:
            state, hidden, read = _branch(model, slots, state, keys, step - 1, num_candidates, ended)
            parents = torch.arange(len(keys), device=keys.device) // num_candidates  # (R,)
            ended = ended[parents]
            passes += read
            if model.stops_itself:
                ended = ended | stops(model, hidden)
                twin = _twins(ended, num_candidates)
            state.thought = add_noise(slots.sampling, model.to_thought(hidden), keys, step)  # (R, D)
            state.counts = torch.where(ended, state.counts, step)
        reward = scorer.extend(state.thought, parents).masked_fill(ended, 0)  # (R,)
        thoughts = _append(thoughts, parents, state.thought.masked_fill(ended[:, None], 0))
        scores = _append(scores, parents, reward)
        total = trajectory_score(scores.sum(1), state.counts, score_by)  # (R,)
        keep = _best(total.masked_fill(twin, float("-inf")), len(request.prompts), num_beams)  # (Q * B,)
        thoughts, scores, ended = thoughts[keep], scores[keep], ended[keep]
        scorer.select(keep)
        state = _survivors(slots, state, keep)
        if bool(ended.all()):
            break
    beams = replace(request, n_samples=num_beams)
    if model.stops_itself:
        if not bool(ended.all()):  # at the cap
            passes += int((~ended).sum())
            read_thought(model, slots.sampling, state, request.latent_length)
        state.own.hide(state.counts)
        state.thought = None
    trajectories = decode(model, beams, state, thoughts)
    return Beams(trajectories, scores.unflatten(0, (-1, num_beams)), passes)


def _branch(model, request, state, keys, step, count, ended):
    """Every beam ``count`` times, the hidden states (R, D) at its thought number ``step``, and how many
    rows had to be read for them.

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
        counts=state.counts[repeat],
        own=state.own.select(repeat),
    )
    alive = int((~ended).sum())
    if not request.sampling.drops:
        return branches, hidden[repeat], alive
    return branches, read_thought(model, request.sampling, branches, step), alive * count


def _twins(ended, count):
    """Which slots (R,) have ended like an earlier slot of the same beam: they hold the same thoughts."""
    per_beam = ended.view(-1, count)
    return (per_beam & (per_beam.cumsum(1) > 1)).flatten()


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
        counts=state.counts[keep],
        prompt=prompt,
        own=state.own.select(keep),
    )
