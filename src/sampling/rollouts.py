"""Labels of thoughts by stochastic rollouts (You et al., arXiv 2510.07745, section 4).

The label of thought t is the share of M rollouts from the prefix h_1 .. h_t that reach the right
answer. A rollout continues from the trajectory's own keys and values.

Shapes: Q questions, N trajectories of each, R rows, T thoughts, D model width.
"""

from dataclasses import dataclass, replace

import torch

from src.sampling import rng
from src.sampling.engine import continue_thinking, decode, decode_answers, think
from src.sampling.memory import rows_within
from src.sampling.trajectories import Trajectories, thought_mask

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


@torch.inference_mode()
def annotate(model, request, n_rollouts, is_right):
    """Samples ``request`` and labels every thought by ``n_rollouts`` rollouts.

    is_right(q, ids): whether answer ``ids`` is right for question number q of the request. With
    ``n_rollouts`` 0 the labels are the outcome and no question is skipped.
    """
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
            part = state.select(rows), thoughts[rows]
            questions = mixed.tolist()
            estimations[mixed] = _roll_out(
                model, request, *part, n_rollouts, lambda q, ids: is_right(questions[q], ids)
            )
    return LabelledTrajectories(trajectories, corrects, estimations, skipped)


def _with_thought(state, step):
    """The part of the state whose rows have thought number ``step``, and its rows (R',)."""
    rows = (state.num_thoughts >= step).nonzero()[:, 0]
    return (state if len(rows) == len(state) else state.select(rows, step - 1)), rows


def _roll_out(model, request, state, thoughts, n_rollouts, is_right):
    """Shares (Q, N, T) of right rollouts from each prefix of each row's thoughts (R, T, D).

    Rollouts keep dropout to their end, other than the trajectories themselves (as the release).
    """
    request = replace(request, sampling=replace(request.sampling, dropout_answer=True))
    length = thoughts.shape[1]
    shares = torch.zeros(thoughts.shape[:2])
    longest = int(state.num_thoughts.max())  # other questions may have more thoughts than these
    for step in range(1, longest + 1):
        part, rows = _with_thought(state, step)
        # Without dropout nothing is random after the last thought: one rollout tells all.
        random = step < length or request.sampling.uses_dropout
        count = n_rollouts if random else 1
        part.thought = thoughts[rows, step - 1]
        questions = (rows // request.n_samples).tolist()
        right = _count_right(model, request, part, step, count, is_right, questions)
        shares[rows.cpu(), step - 1] = right / count
    return shares.unflatten(0, (-1, request.n_samples))


def _count_right(model, request, state, step, n_rollouts, is_right, questions):
    """How many rollouts are right (R',), of each row of the state, which is at thought ``step``.

    questions: R' question numbers of the request.
    """
    right = torch.zeros(len(questions))
    at_once = rows_within(model, request.latent_length + request.max_new_tokens)
    chunk = max(1, at_once // len(questions))
    for first in range(0, n_rollouts, chunk):
        count = min(chunk, n_rollouts - first)
        answers = iter(_rollout_answers(model, request, state, step, first, count))
        for row, q in enumerate(questions):
            right[row] += sum(is_right(q, next(answers)) for _ in range(count))
    return right


def _rollout_answers(model, request, state, step, first, count):
    """Answers of ``count`` rollouts of every row, R' * count lists of ids.

    They continue from the state's thought, number ``step``. first: the number of the first rollout.
    """
    repeat = state.all_rows.repeat_interleave(count)
    numbers = torch.arange(first, first + count, device=repeat.device).repeat(len(state))
    new_positions = request.latent_length - step + 1 + request.max_new_tokens
    branch = state.select(repeat, length=step - 1, extra=new_positions)
    branch.rng_keys = rng.fold(rng.fold(branch.rng_keys, _ROLLOUT + step), numbers)
    continue_thinking(model, request, branch, step)
    return decode_answers(model, request, branch)[0]
