"""How probable each candidate answer is under each trajectory: the basis of the Bayesian vote.

Monte Carlo dropout's predictive distribution is the mean over masks of p(answer | trajectory) (Gal
and Ghahramani 2016), so an answer's probability is averaged over all trajectories, whichever gave
it.

Shapes: n trajectories, K distinct answers, A tokens of the longest, D model width, V vocabulary.
"""

from dataclasses import dataclass

import torch

from src.sampling.engine import State, answer_start, decode, read_answer, think
from src.sampling.memory import rows_within
from src.sampling.trajectories import Request, pad_right


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

    state: their State after the end-of-thinking token, hidden (R, D) the hidden states there.
    log_probs: for each question a list of (n, K') tensors, side by side.
    """

    request: Request
    state: State
    hidden: torch.Tensor
    log_probs: list


class LikelihoodPool:
    """Answer likelihoods of a growing pool of trajectories, of Q questions.

    parse(ids): the number in an answer's token ids, or None. One answer text a number is scored. A
    pool that grows in parts gives the same numbers as one that is made at once. tokens_read: token
    positions read so far.
    """

    def __init__(self, model, parse, num_questions):
        self.model, self.parse, self.tokens_read = model, parse, 0
        self.parts = []
        self.texts = [{} for _ in range(num_questions)]  # {number: token ids} of each question

    @torch.inference_mode()
    def add(self, request, state, trajectories):
        """Adds further trajectories, with the State that ``sample_with_state`` gave."""
        x, positions = answer_start(self.model, state)
        state = state.select(state.all_rows, extra=x.shape[1])
        hidden = read_answer(self.model, request.sampling, state, x, positions)[:, -1]  # (R, D)
        self.parts.append(_Part(request, state, hidden, [[] for _ in self.texts]))
        for q, texts in enumerate(self.texts):
            new = self._new_texts(texts, trajectories.tokens[q], trajectories.finished[q])
            for part in self.parts[:-1]:  # earlier trajectories need the new answers only
                self._score(part, q, new)
            texts |= new
            self._score(self.parts[-1], q, texts)

    def likelihoods(self):
        """The AnswerLikelihoods of each question."""
        return [
            AnswerLikelihoods(
                list(texts), torch.cat([torch.cat(part.log_probs[q], 1) for part in self.parts])
            )
            for q, texts in enumerate(self.texts)
        ]

    def _new_texts(self, texts, answers, finished):
        """{number: token ids} of the answers that are not in ``texts``."""
        new = {}
        for ids, done in zip(answers, finished, strict=True):
            number = self.parse(ids)
            if number is not None and number not in texts:
                new.setdefault(number, ids + [self.model.config.eos_token_id] * done)
        return new

    def _score(self, part, q, texts):
        """Adds the log-probabilities of ``texts``, {number: token ids}, under a part's rows."""
        n = part.request.n_samples
        if not texts:
            part.log_probs[q].append(torch.zeros(n, 0))
            return
        ids, lengths = (x.to(self.model.device) for x in pad_right(list(texts.values()), 0))
        longest = ids.shape[1]
        positions = part.request.latent_length + longest
        pairs = rows_within(self.model, positions, logits=longest)  # (trajectory, answer) pairs
        rows = torch.arange(q * n, (q + 1) * n, device=ids.device)
        chunks = rows.split(max(1, pairs // len(ids)))
        log_probs = [_log_probs(self.model, part, chunk, ids, lengths) for chunk in chunks]
        part.log_probs[q].append(torch.cat(log_probs).cpu())
        self.tokens_read += n * int((lengths - 1).sum())


def _log_probs(model, part, rows, ids, lengths):
    """(M, K) log-probabilities of answers ids (K, A) of lengths (K,) under rows (M,)."""
    state, (num_answers, longest) = part.state, ids.shape
    pairs = rows.repeat_interleave(num_answers)  # (M * K,)
    branch = state.select(pairs, extra=longest)
    hidden = part.hidden[pairs][:, None]  # (M * K, 1, D)
    if longest > 1:
        x = model.embed(ids[:, :-1]).repeat(len(rows), 1, 1)  # (M * K, A - 1, D)
        first_position = (branch.prompt_lengths + branch.num_thoughts + 1)[:, None]
        positions = first_position + torch.arange(longest - 1, device=ids.device)
        after = read_answer(model, part.request.sampling, branch, x, positions)
        hidden = torch.cat((hidden, after), dim=1)  # (M * K, A, D)
    token = model.lm_head(hidden).float().log_softmax(-1)  # (M * K, A, V)
    token = token.gather(-1, ids.repeat(len(rows), 1)[..., None])[..., 0]  # (M * K, A)
    padding = torch.arange(longest, device=ids.device) >= lengths[:, None]  # (K, A)
    return token.unflatten(0, (-1, num_answers)).masked_fill(padding, 0).sum(-1)
