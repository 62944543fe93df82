"""Labels of thoughts by stochastic rollouts (You et al., arXiv 2510.07745, section 4).

The label of thought t is the share of M rollouts from the prefix h_1 .. h_t that reach the right
answer. A rollout continues from the trajectory's own keys and values.

Shapes: Q questions, N trajectories of each, R rows, T thoughts, D model width.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch

from src.sampling import rng
from src.sampling.answers import decode_states
from src.sampling.engine import continue_thinking, decode, think
from src.sampling.memory import question_parts, rows_in_flight, rows_within
from src.sampling.trajectories import Trajectories, cat_steps, thought_mask

_ROLLOUT = 1 << 41  # folded into a trajectory's key, so that its rollouts draw numbers of their own


@dataclass
class LabelledTrajectories:
    """Trajectories of Q questions with the outcome of each and the labels of its thoughts.

    corrects (Q, N) bool. estimations (Q, N, T): share of right rollouts, or the outcome where no
    rollouts were asked for; 0 where there is no thought; meaningless for a skipped question.
    skipped (Q,) bool: all trajectories are right, or none, so that no rollouts were spent on it.
    """

    trajectories: Trajectories
    corrects: torch.Tensor
    estimations: torch.Tensor
    skipped: torch.Tensor

    @classmethod
    def join(cls, parts):
        """Those of all questions from those of some questions each."""
        return cls(
            Trajectories.join([part.trajectories for part in parts]),
            torch.cat([part.corrects for part in parts]),
            cat_steps([part.estimations for part in parts], dim=0),
            torch.cat([part.skipped for part in parts]),
        )


@torch.inference_mode()
def annotate(model, request, n_rollouts, is_right):
    """Samples ``request`` and labels every thought by ``n_rollouts`` rollouts.

    is_right(q, ids): whether answer ``ids`` is right for question number q of the request. With
    ``n_rollouts`` 0 the labels are the outcome and no question is skipped. As many questions are
    annotated at once as memory allows.
    """
    parts = []
    for first, part in question_parts(request, rows_in_flight(model, request)):
        of_part = partial(_is_right_from, is_right, first)
        parts.append(_annotate(model, part, n_rollouts, of_part))
    return LabelledTrajectories.join(parts)


def _is_right_from(is_right, first, q, ids):
    return is_right(first + q, ids)


def _annotate(model, request, n_rollouts, is_right):
    state, thoughts = think(model, request)
    trajectories = decode(model, request, state, thoughts)
    corrects = torch.tensor(
        [[is_right(q, ids) for ids in answers] for q, answers in enumerate(trajectories.tokens)]
    )  # (Q, N)
    mask = thought_mask(trajectories.num_thoughts, thoughts.shape[1])  # (Q, N, T)
    estimations = (corrects[..., None] & mask).float()  # (Q, N, T)
    skipped = torch.zeros(len(corrects), dtype=torch.bool)
    if n_rollouts:
        skipped = corrects.all(1) | ~corrects.any(1)
        mixed = (~skipped).nonzero()[:, 0]  # (Q',)
        if len(mixed):
            samples = torch.arange(request.n_samples)
            rows = (mixed[:, None] * request.n_samples + samples).flatten().to(thoughts.device)
            if len(mixed) < len(corrects):  # the other rows need not stay in memory
                state, thoughts = state.select(rows), thoughts[rows]
            questions = mixed.tolist()
            estimations[mixed] = _roll_out(
                model, request, state, thoughts, n_rollouts,
                lambda q, ids: is_right(questions[q], ids),
            )  # fmt: skip
    return LabelledTrajectories(trajectories, corrects, estimations, skipped)


def _roll_out(model, request, state, thoughts, n_rollouts, is_right):
    """Shares (Q, N, T) of right rollouts from each prefix of each row's thoughts (R, T, D).

    Rollouts keep dropout to their end, other than the trajectories themselves (as the release).
    """
    request = replace(request, sampling=replace(request.sampling, dropout_answer=True))
    positions, longest = (
        request.latent_length + request.max_new_tokens,
        max(map(len, request.prompts)),
    )
    # Each chunk copies the prompts that its rollouts share.
    sharers = n_rollouts * (1 if request.sampling.resample_prompt else request.n_samples)
    room = rows_within(model, positions, new=2, prompt=longest, sharers=sharers)
    chunks = _plan(request, state.num_thoughts, thoughts.shape[1], n_rollouts, room)
    branches = (_branch(model, request, state, thoughts, *chunk) for chunk in chunks)
    right, total = torch.zeros(2, *thoughts.shape[:2])
    decoded = decode_states(model, request, branches, room)
    for (step, rows, _), (answers, _) in zip(chunks, decoded, strict=True):
        for row, ids in zip(rows.tolist(), answers, strict=True):
            right[row, step - 1] += is_right(row // request.n_samples, ids)
            total[row, step - 1] += 1
    return (right / total.clamp(min=1)).unflatten(0, (-1, request.n_samples))


def _plan(request, num_thoughts, length, n_rollouts, room):
    """All rollouts, in chunks: (step, rows (r,), numbers (r,)) of rollouts that start at one step.

    num_thoughts (R,): thoughts that the rows have, at most ``length``. A chunk takes at most half
    of ``room`` rows, where there are several.
    """
    chunks = []
    for step in range(1, int(num_thoughts.max()) + 1):
        rows = (num_thoughts >= step).nonzero()[:, 0]  # (R',)
        # With noise nothing is random after the last thought: one rollout tells all.
        random = step < length or request.sampling.varies_rollouts
        count = n_rollouts if random else 1
        numbers = torch.arange(count, device=rows.device).repeat(len(rows))
        rows, size = rows.repeat_interleave(count), max(1, room // 2)
        parts = zip(rows.split(size), numbers.split(size), strict=True)
        chunks += [(step, *part) for part in parts]
    return chunks


def _branch(model, request, state, thoughts, step, rows, numbers):
    """The State, before their answers, of rollouts from thought number ``step`` of some rows.

    rows (r,) of the state; numbers (r,): the number of each rollout of its row.
    """
    new_positions = request.latent_length - step + 1 + request.max_new_tokens
    branch = state.select(rows, length=step - 1, extra=new_positions)
    branch.thought = thoughts[rows, step - 1]
    branch.rng_keys = rng.fold(rng.fold(branch.rng_keys, _ROLLOUT + step), numbers)
    continue_thinking(model, request, branch, step)
    return branch
