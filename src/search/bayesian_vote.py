"""How probable each candidate answer is under each trajectory: the basis of the Bayesian vote.

Monte Carlo dropout's predictive distribution is the mean over masks of p(answer | trajectory) (Gal
and Ghahramani 2016), so an answer's probability is averaged over all trajectories, whichever gave
it.

Shapes: n trajectories, K distinct answers, A tokens of the longest, D model width, V vocabulary.
"""

from dataclasses import dataclass, replace

import torch

from src.sampling.answers import answer_start, read_answer
from src.sampling.engine import decode, think
from src.sampling.logits import token_log_probs
from src.sampling.memory import rows_in_flight, rows_within
from src.sampling.state import State
from src.sampling.trajectories import Request, pad_right, with_end
from utils.records import rounded


@dataclass
class AnswerLikelihoods:
    """Of one question: answers, K distinct numbers in the order of their first trajectory.

    log_probs (N, K): log p(text of the answer, end-of-text | trajectory). The text is that of the
    first trajectory with this number.
    """

    answers: list
    log_probs: torch.Tensor


@torch.inference_mode()
def sample_with_state(model, request):
    """The Trajectories of ``request``, and their State before the answers."""
    state, thoughts = think(model, request)
    return decode(model, request, state, thoughts), state


@dataclass
class _Part:
    """Trajectories that were added together: R rows of Q questions.

    state: their State after the end-of-thinking token, hidden (R, D) the hidden states there; None
    where they do not stay in memory. log_probs: for each question a list of (n, K') tensors, side
    by side.
    """

    request: Request
    state: State | None
    hidden: torch.Tensor | None
    log_probs: list


class LikelihoodPool:
    """Answer likelihoods of a growing pool of trajectories, of Q questions.

    parse(ids): the number in an answer's token ids, or None. One answer text a number is scored. A
    pool that grows in parts gives the same numbers as one that is made at once. Trajectories whose
    state does not fit into memory beside the others' are thought again when new answers come up.
    tokens_read: token positions read so far.
    """

    def __init__(self, model, parse, num_questions):
        self.model, self.parse, self.tokens_read = model, parse, 0
        self.parts = []
        self.texts = [{} for _ in range(num_questions)]  # {number: token ids} of each question

    @torch.inference_mode()
    def add(self, request, state, trajectories):
        """Adds further trajectories, with the State that ``sample_with_state`` gave."""
        part = _Part(request, *self._read_start(request, state), [[] for _ in self.texts])
        answers = zip(self.texts, trajectories.tokens, trajectories.finished, strict=True)
        eos = self.model.config.eos_token_id
        new = [new_texts(self.parse, eos, *of_question) for of_question in answers]
        for earlier in self.parts:  # these need the new answers only
            self._score(earlier, new)
        self.texts = [texts | more for texts, more in zip(self.texts, new, strict=True)]
        self._score(part, self.texts)
        in_memory = sum(len(other.state) for other in self.parts if other.state is not None)
        if in_memory + len(part.state) > rows_in_flight(self.model, request):
            part.state = part.hidden = None
        self.parts.append(part)

    def _read_start(self, request, state):
        return end_thinking(self.model, request.sampling, state)

    def likelihoods(self):
        """The AnswerLikelihoods of each question."""
        return [
            AnswerLikelihoods(
                list(texts), torch.cat([torch.cat(part.log_probs[q], 1) for part in self.parts])
            )
            for q, texts in enumerate(self.texts)
        ]

    def fields(self):
        """{key: a value for each question}: "candidates", and "log_probs" (N, K)."""
        of_questions = self.likelihoods()
        return {
            "candidates": [question.answers for question in of_questions],
            "log_probs": [rounded(question.log_probs) for question in of_questions],
        }

    def _score(self, part, texts):
        """Adds the log-probabilities of ``texts``, {number: token ids} of each question."""
        if part.state is None and any(texts):
            state, _ = think(self.model, part.request)
            state, hidden = self._read_start(part.request, state)
            part = replace(part, state=state, hidden=hidden)  # with the same lists
        for q, of_question in enumerate(texts):
            self._score_question(part, q, of_question)

    def _score_question(self, part, q, texts):
        n = part.request.n_samples
        if not texts:
            part.log_probs[q].append(torch.zeros(n, 0))
            return
        ids, lengths = (x.to(self.model.device) for x in pad_right(list(texts.values()), 0))
        longest = ids.shape[1]
        positions = part.request.latent_length + longest
        pairs = rows_within(self.model, positions, longest)  # (trajectory, answer) pairs
        rows = torch.arange(q * n, (q + 1) * n, device=ids.device)
        chunks = rows.split(max(1, pairs // len(ids)))
        log_probs = [_log_probs(self.model, part, chunk, ids, lengths) for chunk in chunks]
        part.log_probs[q].append(torch.cat(log_probs).cpu())
        self.tokens_read += n * int((lengths - 1).sum())


def new_texts(parse, eos, known, answers, finished):
    """{number: token ids with end-of-text} of the answers of a question that are not ``known``.

    parse(ids): the number in an answer, or None. eos: the end-of-text id.
    """
    new = {}
    for ids, text in zip(answers, with_end(answers, finished, eos), strict=True):
        number = parse(ids)
        if number is not None and number not in known:
            new.setdefault(number, text)
    return new


def _log_probs(model, part, rows, ids, lengths):
    """(M, K) log-probabilities of answers ids (K, A) of lengths (K,) under rows (M,)."""
    num_answers, longest = ids.shape
    pairs = rows.repeat_interleave(num_answers)  # (M * K,)
    branch = part.state.select(pairs, extra=longest)
    texts = (x.repeat(len(rows), *[1] * (x.dim() - 1)) for x in (ids, lengths))
    token = answer_log_probs(model, part.request.sampling, branch, part.hidden[pairs], *texts)
    return token.unflatten(0, (-1, num_answers))


def end_thinking(model, sampling, state):
    """A copy of the State after the end-of-thinking token, and the hidden states (R, D) there."""
    x, positions = answer_start(model, state)
    state = state.select(state.all_rows, extra=x.shape[1])
    return state, read_answer(model, sampling, state, x, positions, at_start=True)[:, -1]


def answer_log_probs(model, sampling, state, hidden, ids, lengths):
    """log p (R,) of answers ids (R, A) of lengths (R,), each under its own row of a State.

    state, hidden: as ``end_thinking`` gives them, with room for A positions, which are filled.
    """
    longest = ids.shape[1]
    hidden = hidden[:, None]  # (R, 1, D)
    if longest > 1:
        first_position = (state.prompt_lengths + state.num_thoughts + 1)[:, None]
        positions = first_position + torch.arange(longest - 1, device=ids.device)
        after = read_answer(model, sampling, state, model.embed(ids[:, :-1]), positions)
        hidden = torch.cat((hidden, after), dim=1)  # (R, A, D)
    token = token_log_probs(model, model.lm_head.weight, hidden, ids)  # (R, A)
    padding = torch.arange(longest, device=ids.device) >= lengths[:, None]  # (R, A)
    return token.masked_fill(padding, 0).sum(-1)
