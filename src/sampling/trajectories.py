"""Request: what to sample. Trajectories: the result.

Q questions, N trajectories of each, T latent thoughts, A answer tokens, D model width.
"""

from dataclasses import dataclass
from itertools import chain

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from src.sampling.samplers import DETERMINISTIC, Sampling
from utils.config import check_seed


@dataclass(frozen=True)
class Request:
    """What to sample.

    prompts: Q lists of token ids. question_ids: Q integers, which with seed and sample number key
    the random numbers. n_samples: trajectories N of each question, number ``first_sample`` and
    those after it, so that a pool can grow. latent_length: thoughts of a trajectory, or at most so
    many where the model decides when to stop thinking. max_new_tokens: answer tokens at most.
    """

    prompts: list
    question_ids: list
    n_samples: int = 1
    latent_length: int = 6
    max_new_tokens: int = 64
    seed: int = 0
    sampling: Sampling = DETERMINISTIC
    first_sample: int = 0

    def check(self, max_positions):
        """Raises ValueError when this can't be sampled by a model of so many positions."""
        if len(self.question_ids) != len(self.prompts):
            ids = f"{len(self.question_ids)} question ids"
            raise ValueError(f"{len(self.prompts)} prompts, but {ids}")
        if self.n_samples > 1 and self.sampling.method is None:
            raise ValueError("without sampling all trajectories are equal: ask for one sample")
        if min(self.n_samples, self.latent_length, self.max_new_tokens) < 1:
            raise ValueError("samples, thoughts and answer tokens must be at least one each")
        check_seed(self.seed)
        if not all(map(len, self.prompts)):
            raise ValueError("a prompt is empty")
        longest = max(map(len, self.prompts))
        check_length(max_positions, longest, self.latent_length, self.max_new_tokens)


def check_length(max_positions, longest_prompt, latent_length, max_new_tokens):
    """Raises ValueError when prompt, thoughts and answer do not fit the model's positions."""
    needed = longest_prompt + latent_length + max_new_tokens  # the last token is never read
    if longest_prompt + latent_length >= max_positions:
        raise ValueError(
            f"a prompt of {longest_prompt} tokens and {latent_length} thoughts leave no room for "
            f"an answer in the model's {max_positions} positions: drop the longest questions"
        )
    if needed > max_positions:
        raise ValueError(
            f"a prompt of {longest_prompt} tokens, {latent_length} thoughts and the answer need "
            f"{needed} positions, the model has {max_positions}: lower max_new_tokens"
        )


@dataclass
class Trajectories:
    """Sampled trajectories of Q questions.

    thoughts (Q, N, T, D): as they were fed back, 0 where a trajectory has fewer than T.
    num_thoughts (Q, N): how many exist. tokens[q][n]: answer ids without end-of-text.
    finished[q][n]: whether end-of-text came within the limit.
    """

    thoughts: torch.Tensor
    num_thoughts: torch.Tensor
    tokens: list
    finished: list

    def first(self, n):
        """The first n trajectories of each question."""
        return Trajectories(
            self.thoughts[:, :n],
            self.num_thoughts[:, :n],
            [of_question[:n] for of_question in self.tokens],
            [of_question[:n] for of_question in self.finished],
        )

    def thoughts_of(self, q):
        """Thoughts (N, T', D) of question number q, T' those of its longest trajectory."""
        return self.thoughts[q, :, : int(self.num_thoughts[q].max())]

    def texts(self, eos):
        """Answers of the Q * N trajectories: lists of ids, with end-of-text where it came."""
        return with_end(chain(*self.tokens), chain(*self.finished), eos)

    def answer_ids(self, q, eos):
        """Answers of question number q, (N, A): ids, end-of-text where it came, then -1."""
        return pad_right(with_end(self.tokens[q], self.finished[q], eos), -1)[0]

    @classmethod
    def concatenate(cls, parts):
        """One pool of the parts by which it grew, each with further samples of the questions."""
        return cls(
            cat_steps([part.thoughts for part in parts], dim=1),
            torch.cat([part.num_thoughts for part in parts], dim=1),
            concatenate_lists([part.tokens for part in parts]),
            concatenate_lists([part.finished for part in parts]),
        )

    @classmethod
    def join(cls, parts):
        """Those of all questions from those of some questions each."""
        return cls(
            cat_steps([part.thoughts for part in parts], dim=0),
            torch.cat([part.num_thoughts for part in parts]),
            [answers for part in parts for answers in part.tokens],
            [answers for part in parts for answers in part.finished],
        )


def cat_steps(tensors, dim):
    """Concatenates tensors (Q, N, T, ...) along Q or N, padded with 0 to the largest T."""
    longest = max(x.shape[2] for x in tensors)
    padded = [pad(x, (0, 0) * (x.dim() - 3) + (0, longest - x.shape[2])) for x in tensors]
    return torch.cat(padded, dim)


def thought_mask(num_thoughts, most):
    """Which of ``most`` thoughts exist, (..., T) bool, for num_thoughts (...)."""
    return torch.arange(most, device=num_thoughts.device) < num_thoughts[..., None]


def concatenate_lists(parts):
    """One list for each question from the lists that the parts of its pool have."""
    return [list(chain.from_iterable(lists)) for lists in zip(*parts, strict=True)]


def with_end(answers, finished, eos):
    """Answers, lists of token ids, with end-of-text, ``eos``, where they are finished."""
    return [ids + [eos] * done for ids, done in zip(answers, finished, strict=True)]


def pad_right(sequences, fill):
    """Lists of ids as one tensor (Q, L), padded on the right with ``fill``; lengths (Q,)."""
    lengths = torch.tensor([len(ids) for ids in sequences])
    tensors = [torch.tensor(ids, dtype=torch.int64) for ids in sequences]
    return pad_sequence(tensors, batch_first=True, padding_value=fill), lengths
