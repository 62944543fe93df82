"""Lookahead: where prefixes of thoughts lead when sampling stops (huggingface/search-and-learn).

Before a search judges a prefix, a few more thoughts are taken deterministically, or all that are
left, and then the answer is decoded. The search keeps none of it.

Shapes: R prefixes of t thoughts each, K further thoughts, D model width.
"""

from dataclasses import dataclass, replace

import torch

from src.sampling.answers import decode_states
from src.sampling.engine import continue_thinking
from src.sampling.samplers import DETERMINISTIC
from src.sampling.state import State
from src.sampling.trajectories import Request, with_end

ANSWER = "answer"  # the lookahead that goes on to the answer


@dataclass
class Outlook:
    """What lies ahead of R prefixes.

    request: the deterministic Request by which it was computed. thoughts (R, K, D): the further
    thoughts, 0 where there is none; num_ahead (R,): how many exist. state: where they end. tokens,
    finished: each row's answer and whether it ended, as of ``decode_states``; None without answers.
    num_forward_passes: rows that the generator read on the way there.
    """

    request: Request
    thoughts: torch.Tensor
    num_ahead: torch.Tensor
    state: State
    tokens: list | None
    finished: list | None
    num_forward_passes: int

    def answer_ids(self, eos):
        """The answers, lists of token ids; with end-of-text, ``eos``, where it came."""
        return with_end(self.tokens, self.finished, eos)


def look_ahead(model, request, state, step, ended, lookahead):
    """The Outlook of the rows of a State, whose thought number ``step`` has not been read yet.

    ended (R,) bool: rows whose latent phase is over. lookahead: the most thoughts, or ANSWER. The
    rows stay as they are.
    """
    with_answer = lookahead == ANSWER
    last = request.latent_length if with_answer else min(request.latent_length, step + lookahead)
    greedy = replace(request, sampling=DETERMINISTIC, latent_length=last)
    ahead, before = state.fork(), state.num_thoughts
    think_on = _think_until_stop if model.stops_itself else _think_to_the_end
    thoughts, num_forward_passes = think_on(model, greedy, ahead, step, ended)
    answers = (None, None)
    if with_answer:
        (answers,) = decode_states(model, greedy, [ahead], len(ahead))
    num_ahead = ahead.num_thoughts - before
    return Outlook(greedy, thoughts, num_ahead, ahead, *answers, num_forward_passes)


def _think_to_the_end(model, request, state, step, _):
    """Advances all rows of ``state``: the thoughts (R, K, D) and the number of forward passes."""
    thoughts = continue_thinking(model, request, state, step)
    none = state.thought.new_zeros(len(state), 0, state.thought.shape[1])
    return torch.stack(thoughts, dim=1) if thoughts else none, len(thoughts) * len(state)


def _think_until_stop(model, request, state, step, ended):
    """The same where the model stops itself: only the rows go on that have not ended."""
    rows, num_thoughts, thoughts = (~ended).nonzero()[:, 0], state.num_thoughts.clone(), []
    if len(rows):
        active = state.select(rows)
        thoughts = continue_thinking(model, request, active, step)  # (R', D) each
        num_thoughts[rows] = active.num_thoughts
        state.write_suffix(rows, active)
    state.suffix.set_lengths(num_thoughts)
    passes = int((num_thoughts - state.num_thoughts).sum()) + len(rows)  # the last one is read, too
    of_rows = state.thought.new_zeros(len(state), len(thoughts), state.thought.shape[1])
    if thoughts:
        of_rows[rows] = torch.stack(thoughts, dim=1)
    state.thought, state.num_thoughts = None, num_thoughts
    return of_rows, passes
