"""How probable each candidate answer is under each trajectory: the ground of the Bayesian vote.

MC dropout's predictive distribution is the mean over masks of p(answer | trajectory) (Gal and
Ghahramani 2016), so an answer's probability is averaged over all trajectories, whoever gave it.
"""

from dataclasses import dataclass

import torch

from src.sampling.engine import State, answer_start, decode, pad_right, think
from src.sampling.samplers import dropout_hook

CANDIDATE_ROWS = {"cpu": 512, "cuda": 8192}  # (trajectory, candidate) pairs in flight
CANDIDATE_LOGITS = {"cpu": 1 << 26, "cuda": 1 << 29}  # numbers that their tokens' logits may take


@dataclass
class Candidates:
    """Of one question: numbers, K distinct answers in the order of their first trajectory.

    log_probs (N, K): log p(text of the answer, end-of-text | trajectory), the text as its first
    trajectory wrote it. passes: token positions that were read to find them.
    """

    numbers: list
    log_probs: torch.Tensor
    passes: int


@torch.inference_mode()
def sample_and_keep(model, request):
    """Samples ``request``: its Trajectories, and the state that ``score_candidates`` goes on from."""
    state, thoughts = think(model, request)
    begun = state.fork()
    return decode(model, request, state, thoughts), begun


@torch.inference_mode()
def score_candidates(model, request, begun, trajectories, parse):
    """The Candidates of each question.

    parse(ids): the number that an answer's token ids say, or None. The pool's first n trajectories
    and their answers give the same numbers as a pool of n. Only one answer text a number is scored.
    """
    hidden = _read_end(model, request, begun)  # (R, D)
    found = []
    for q, answers in enumerate(trajectories.tokens):
        texts = {}
        for ids, done in zip(answers, trajectories.finished[q], strict=True):
            texts.setdefault(parse(ids), ids + [model.config.eos_token_id] * done)
        texts.pop(None, None)
        found.append(_score_question(model, request, begun, hidden, q, texts))
    return found


def _read_end(model, request, state):
    """Final hidden states (R, D) at the forced end-of-thinking token."""
    return _extend(model, request, state, *answer_start(model, state))[:, -1]


def _extend(model, request, state, x, positions):
    """Hidden states of inputs x (R, S, D) of the answer, at positions (R, S)."""
    steps = positions - (state.lengths[:, None] - 1)
    drop = dropout_hook(request.sampling, state.keys, steps, active=request.sampling.dropout_answer)
    return model.extend(x, positions, state.prompt, state.own, drop)


def _score_question(model, request, state, hidden, q, texts):
    """The Candidates of question number q, whose answers are ``texts``, {number: token ids}."""
    n = request.n_samples
    if not texts:
        return Candidates([], torch.zeros(n, 0), 0)
    ids, lengths = pad_right(list(texts.values()), 0)  # (K, A), (K,)
    ids, lengths = ids.to(model.device), lengths.to(model.device)
    pairs = CANDIDATE_LOGITS.get(model.device.type, 1 << 26) // (ids.shape[1] * model.config.vocab_size)
    size = max(1, min(pairs, CANDIDATE_ROWS.get(model.device.type, 512)) // len(ids))
    rows = torch.arange(q * n, (q + 1) * n, device=model.device).split(size)
    parts = [_log_probs(model, request, state, hidden, chunk, q, ids, lengths) for chunk in rows]
    passes = n * int((lengths - 1).sum())
    return Candidates(list(texts), torch.cat(parts).cpu(), passes)


def _log_probs(model, request, state, hidden, rows, q, ids, lengths):
    """(M, K) log-probabilities of candidates ids (K, A) under the trajectories ``rows`` (M,)."""
    count, longest = ids.shape
    shared = state.prompt.groups < len(state.keys)
    first = q if shared else int(rows[0])
    groups = slice(first, first + (1 if shared else len(rows)))
    repeat = rows.repeat_interleave(count)  # (M * K,)
    branch = State(
        thought=None,
        keys=state.keys[repeat],
        lengths=state.lengths[repeat],
        counts=state.counts[repeat],
        prompt=state.prompt.select(groups),
        own=state.own.select(repeat, room=longest),
    )
    after = hidden[rows, None].expand(-1, count, -1).flatten(0, 1)[:, None]  # (M * K, 1, D)
    if longest > 1:
        x = model.embed(ids[:, :-1]).repeat(len(rows), 1, 1)  # (M * K, A - 1, D)
        first = (branch.lengths + branch.counts + 1)[:, None]  # (M * K, 1)
        positions = first + torch.arange(longest - 1, device=first.device)
        text = _extend(model, request, branch, x, positions)
        after = torch.cat((after, text), dim=1)  # (M * K, A, D)
    token = model.lm_head(after).float().log_softmax(-1)  # (M * K, A, V)
    token = token.gather(-1, ids.repeat(len(rows), 1)[..., None])[..., 0]  # (M * K, A)
    beyond = torch.arange(longest, device=ids.device) >= lengths[:, None]  # (K, A)
    return token.unflatten(0, (-1, count)).masked_fill(beyond, 0).sum(-1)
