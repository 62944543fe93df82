"""Labels of thoughts by stochastic rollouts (You et al., arXiv 2510.07745, section 4).

The label of thought t is the share of M stochastic completions from the prefix h_1 .. h_t that reach
the right answer. A completion goes on from the trajectory's own keys and values.
"""

from dataclasses import dataclass, replace

import torch

from src.sampling import rng
from src.sampling.engine import State, Trajectories, answer, decode, think, think_on
from src.sampling.memory import rows_within

_ROLLOUT = 1 << 41  # folded into a trajectory's key, so that completions draw numbers of their own


@dataclass
class Labelled:
    """Trajectories of Q questions with the outcome of each and the labels of its thoughts.

    corrects (Q, N) bool. estimations (Q, N, T): share of completions that are right, or the outcome
    where no rollouts were asked for, and 0 where there is no thought; of a skipped question it is not to
    be used.
    skipped (Q,) bool: all trajectories are right, or none, so that rollouts were not spent on it.
    """

    trajectories: Trajectories
    corrects: torch.Tensor
    estimations: torch.Tensor
    skipped: torch.Tensor


@torch.inference_mode()
def annotate(model, request, n_rollouts, is_right):
    """Samples ``request`` and labels every thought by ``n_rollouts`` completions.

    is_right(q, ids): whether answer ``ids`` is right for the request's question number q. With
    ``n_rollouts`` 0 the labels are the outcome and no question is skipped.
    """
    state, thoughts = think(model, request)
    begun = state.fork()
    trajectories = decode(model, request, state, thoughts)
    corrects = torch.tensor(
        [[is_right(q, ids) for ids in answers] for q, answers in enumerate(trajectories.tokens)]
    )  # (Q, N)
    there = torch.arange(thoughts.shape[1]) < trajectories.lengths[..., None]  # (Q, N, T)
    estimations = (corrects[..., None] & there).float()
    skipped = torch.zeros(len(corrects), dtype=torch.bool)
    if n_rollouts:
        skipped = corrects.all(1) | ~corrects.any(1)
        mixed = (~skipped).nonzero()[:, 0].tolist()
        if mixed:
            part = _select(begun, thoughts, mixed, request.n_samples)
            shares = _roll_out(model, request, *part, n_rollouts, lambda q, ids: is_right(mixed[q], ids))
            estimations[mixed] = shares
    return Labelled(trajectories, corrects, estimations, skipped)


def _select(state, thoughts, questions, n_samples):
    """State and thoughts (R', T, D) of some questions only, a list of their places."""
    questions = torch.tensor(questions, device=thoughts.device)
    rows = _rows_of(questions, n_samples)
    groups = questions if state.prompt.groups < len(state.keys) else rows
    return _part(state, rows, groups, thoughts.shape[1] - 1), thoughts[rows]


def _rows_of(questions, n_samples):
    return (questions[:, None] * n_samples + torch.arange(n_samples, device=questions.device)).flatten()


def _part(state, rows, groups, length):
    """The state of some rows and of their groups, with so many of their own positions."""
    return State(
        thought=None,
        keys=state.keys[rows],
        lengths=state.lengths[rows],
        counts=state.counts[rows],
        prompt=state.prompt.select(groups),
        own=state.own.select(rows, length),
    )


def _with_thought(state, step, n_samples):
    """The part of the state whose rows have thought number ``step``, and which rows (R',) these are; where
    a question's rows share their prompt, all of a question that has such a row."""
    there = state.counts >= step  # (R,)
    if bool(there.all()):
        return state, torch.arange(len(there), device=there.device)
    if state.prompt.groups == len(there):
        rows = groups = there.nonzero()[:, 0]
    else:
        groups = there.view(-1, n_samples).any(1).nonzero()[:, 0]
        rows = _rows_of(groups, n_samples)
    return _part(state, rows, groups, step - 1), rows


def _roll_out(model, request, state, thoughts, n_rollouts, is_right):
    """Shares (Q, N, T) of right completions from each prefix of each row's thoughts (R, T, D).

    Completions keep dropout to their end, other than the trajectories themselves (as the release).
    """
    request = replace(request, sampling=replace(request.sampling, dropout_answer=True))
    length, shares = thoughts.shape[1], torch.zeros(thoughts.shape[:2])
    in_flight = rows_within(model, request.latent_length + request.max_new_tokens)
    for step in range(1, length + 1):
        part, rows = _with_thought(state, step, request.n_samples)
        # without dropout nothing is random after the last thought
        count, right = n_rollouts if step < length or request.sampling.drops else 1, [0] * len(rows)
        chunk = max(1, in_flight // len(rows))
        questions = (rows // request.n_samples).tolist()
        for first in range(0, count, chunk):
            members = torch.arange(first, min(first + chunk, count), device=thoughts.device)
            answers = _complete(model, request, part, thoughts[rows, step - 1], step, members)
            for r, q in enumerate(questions):
                mine = answers[r * len(members) : (r + 1) * len(members)]
                right[r] += sum(is_right(q, ids) for ids in mine)
        there = (part.counts >= step).cpu()  # completions of a thought that is not count not
        shares[rows.cpu(), step - 1] = torch.tensor(right) / count * there
    return shares.unflatten(0, (-1, request.n_samples))


def _complete(model, request, state, thought, step, members):
    """Answers of the completions ``members`` of every row, whose thought number ``step`` is given."""
    repeat = torch.arange(len(state.keys), device=members.device).repeat_interleave(len(members))
    keys = rng.fold(state.keys, _ROLLOUT + step)[repeat]
    begun = State(
        thought=thought[repeat],
        keys=rng.fold(keys, members.repeat(len(state.keys))),
        lengths=state.lengths[repeat],
        counts=state.counts[repeat],
        prompt=state.prompt,
        own=state.own.select(repeat, step - 1),
    )
    think_on(model, request, begun, step)
    return answer(model, request, begun)[0]
