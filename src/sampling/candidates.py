"""How probable each candidate answer is under each trajectory: the ground of the Bayesian vote.

MC dropout's predictive distribution is the mean over masks of p(answer | trajectory) (Gal and
Ghahramani 2016), so an answer's probability is averaged over all trajectories, whoever gave it.
"""

from dataclasses import dataclass

import torch

from src.sampling.engine import State, answer_start, decode, pad_right, think
from src.sampling.memory import rows_within
from src.sampling.samplers import dropout_hook


@dataclass
class Candidates:
    """Of one question: numbers, K distinct answers in the order of their first trajectory.

    log_probs (N, K): log p(text of the answer, end-of-text | trajectory), the text as its first
    trajectory wrote it.
    """

    numbers: list
    log_probs: torch.Tensor


@torch.inference_mode()
def sample_and_keep(model, request):
    """Samples ``request``: its Trajectories, and the state that their candidates are scored from."""
    state, thoughts = think(model, request)
    begun = state.fork()
    return decode(model, request, state, thoughts), begun


class CandidatePool:
    """The answers of a growing pool of trajectories, and how probable each is under each trajectory.

    parse(ids): the number that an answer's token ids say, or None. Only one answer text a number is
    scored. Grown in parts or at once, a pool gives the same numbers. tokens_read: token positions that
    were read so far.
    """

    def __init__(self, model, parse):
        self.model, self.parse, self.tokens_read = model, parse, 0
        self.parts = []  # (request, state, hidden (R, D) at the end-of-thinking token) of each part
        self.questions = None  # of each one its _Question

    @torch.inference_mode()
    def add(self, request, state, trajectories):
        """Takes in further trajectories, and the state that ``sample_and_keep`` gave with them."""
        self.parts.append((request, state, _read_end(self.model, request, state)))
        if self.questions is None:
            self.questions = [_Question() for _ in trajectories.tokens]
        for q, question in enumerate(self.questions):
            new = self._new_texts(question, trajectories.tokens[q], trajectories.finished[q])
            for part in range(len(self.parts) - 1):  # earlier trajectories: the new answers only
                self._score(part, q, new)
            question.texts |= new
            self._score(len(self.parts) - 1, q, question.texts)

    def candidates(self):
        """The Candidates of each question."""
        return [
            Candidates(list(question.texts), torch.cat([torch.cat(x, 1) for x in question.log_probs]))
            for question in self.questions
        ]

    def _new_texts(self, question, answers, finished):
        """{number: token ids} of the answers that nobody gave before."""
        texts = {}
        for ids, done in zip(answers, finished, strict=True):
            number = self.parse(ids)
            if number is not None and number not in question.texts:
                texts.setdefault(number, ids + [self.model.config.eos_token_id] * done)
        return texts

    def _score(self, part, q, texts):
        """Adds the log-probabilities of ``texts``, {number: token ids}, under the trajectories of a part."""
        log_probs, read = _score_question(self.model, *self.parts[part], q, texts)
        columns = self.questions[q].log_probs
        if part == len(columns):
            columns.append([])
        columns[part].append(log_probs)
        self.tokens_read += read


class _Question:
    """texts: {number: token ids} so far; log_probs: for each part a list of (n, k) tensors, side by side."""

    def __init__(self):
        self.texts, self.log_probs = {}, []


def _read_end(model, request, state):
    """Final hidden states (R, D) at the forced end-of-thinking token."""
    return _extend(model, request, state, *answer_start(model, state))[:, -1]


def _extend(model, request, state, x, positions):
    """Hidden states of inputs x (R, S, D) of the answer, at positions (R, S)."""
    steps = positions - (state.lengths[:, None] - 1)
    drop = dropout_hook(request.sampling, state.keys, steps, active=request.sampling.dropout_answer)
    return model.extend(x, positions, state.prompt, state.own, drop)


def _score_question(model, request, state, hidden, q, texts):
    """(n, K) log-probabilities of ``texts``, {number: token ids}, for question number q of a request, and how
    many token positions were read for them."""
    n = request.n_samples
    if not texts:
        return torch.zeros(n, 0), 0
    ids, lengths = pad_right(list(texts.values()), 0)  # (K, A), (K,)
    ids, lengths = ids.to(model.device), lengths.to(model.device)
    longest = ids.shape[1]
    pairs = rows_within(model, request.latent_length + longest, logits=longest)
    rows = torch.arange(q * n, (q + 1) * n, device=model.device).split(max(1, pairs // len(ids)))
    parts = [_log_probs(model, request, state, hidden, chunk, q, ids, lengths) for chunk in rows]
    return torch.cat(parts).cpu(), n * int((lengths - 1).sum())


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
