"""Answers of many rows, decoded together (continuous batching, Orca: Yu et al., OSDI 2022).

Finished rows leave the batch, and the rows of the next State enter once half of the room is free.

Shapes: R rows, S inputs of a pass, A answer tokens at most, D model width.
"""

from collections import deque
from dataclasses import dataclass

import torch

from src.sampling.compilation import run_step
from src.sampling.state import State

COMPACT_BELOW = 0.75  # Finished rows are dropped when the share of unfinished ones is below this.
# Passes between two looks at which rows are finished: a look waits until a GPU is done.
PASSES = {"cpu": 1, "cuda": 4}


def decode_states(model, request, states, room):
    """Decodes the answers of an iterable of States, each at the end of its latent phase.

    Yields for each State, in order, its rows' answers, lists of token ids, and whether each came to
    its end-of-text. A State stays as it is. The next one is taken once at most half of ``room``
    rows are unfinished; where there are several, each should have at most so many.
    """
    batch, states, more = _Batch(model, request), iter(states), True
    waiting = deque()  # (first, end) rows of each State whose answers were not given yet
    while more or waiting:
        while more and batch.unfinished <= room // 2:
            state = next(states, None)
            more = state is not None
            if more:
                waiting.append((batch.entered, batch.entered + len(state)))
                batch.enter(state)
        if batch.unfinished:
            batch.read_on()
        while waiting and waiting[0][1] <= batch.first_unfinished:
            yield batch.answers(*waiting.popleft())


@dataclass
class _Rows:
    """R rows whose answers are being written.

    number (R,): which rows they are of all that entered. token, position (R,): of each row its last
    token and that token's position. count (R,): tokens written. alive (R,): unfinished.
    """

    state: State
    number: torch.Tensor
    token: torch.Tensor
    position: torch.Tensor
    count: torch.Tensor
    alive: torch.Tensor

    def _map(self, state, function):
        names = ("number", "token", "position", "count", "alive")
        return _Rows(state, **{name: function(name) for name in names})

    def select(self, rows):
        """A copy of the given rows, an index tensor."""
        return self._map(self.state.select(rows), lambda name: getattr(self, name)[rows])

    def join(self, other):
        """These rows and those of another."""
        state = self.state.join(other.state)
        return self._map(state, lambda name: torch.cat((getattr(self, name), getattr(other, name))))


class _Batch:
    """The rows in flight, and the answers of all that entered.

    entered: rows so far. unfinished, first_unfinished: how many of them are, and the first one's
    number, when last looked at. written (entered, A + 1): the answers; the last column takes what
    finished rows write. counts (entered,): the answers' lengths.
    """

    def __init__(self, model, request):
        self.model, self.request, self.limit = model, request, request.max_new_tokens
        self.entered = self.unfinished = self.first_unfinished = 0
        self.rows = None
        self.written = torch.empty(0, self.limit + 1, dtype=torch.int64, device=model.device)
        self.counts = torch.empty(0, dtype=torch.int64, device=model.device)

    def enter(self, state):
        """Adds the rows of a State, after the pass over what their answers start with."""
        x, positions = answer_start(self.model, state)
        state, sampling = state.fork(), self.request.sampling
        hidden = read_answer(self.model, sampling, state, x, positions, at_start=True)[:, -1]
        number = self.entered + state.all_rows
        self.entered += len(number)
        new = self.written.new_empty(len(number), self.limit + 1)
        self.written = torch.cat((self.written, new))
        self.counts = torch.cat((self.counts, torch.zeros_like(number)))
        alive, none = torch.ones_like(number, dtype=torch.bool), torch.zeros_like(number)
        new = _Rows(state, number, none, positions[:, -1], none, alive)
        steps = steps_of(positions[:, -1], state.prompt_lengths)
        self._write(new, sampling.next_tokens(self.model, hidden, state.rng_keys, steps))
        if self.unfinished:
            old = self.rows.select(self.rows.alive.nonzero()[:, 0])
            self.rows = None  # its memory is free before the two are joined
            new = old.join(new)
        self.rows = new
        self._drop_finished()

    def read_on(self):
        """A few passes of the unfinished rows; finished ones are dropped once they are many."""
        for _ in range(PASSES.get(self.model.device.type, 1)):
            rows = self.rows
            window, mask = rows.state.suffix.open(1)
            rows.position = rows.position + rows.alive  # finished rows stay where they are
            token = run_step(
                self.model, answer_step, self.request.sampling, rows.token, rows.position,
                rows.state.rng_keys, rows.state.prompt_lengths, rows.state.prefix, window, mask,
            )  # fmt: skip
            self._write(rows, token)
        self._drop_finished()

    def _write(self, rows, token):
        """Writes the next tokens (R,) of rows."""
        rows.alive = rows.alive & (token != self.model.config.eos_token_id)
        self.written[rows.number, torch.where(rows.alive, rows.count, self.limit)] = token
        rows.count = rows.count + rows.alive
        rows.alive = rows.alive & (rows.count < self.limit)
        self.counts[rows.number] = rows.count
        rows.token = token

    def _drop_finished(self):
        """Looks at which rows are unfinished; drops the others where they are many."""
        alive = self.rows.alive.nonzero()[:, 0]
        self.unfinished = len(alive)
        if 0 < len(alive) <= COMPACT_BELOW * len(self.rows.alive):
            self.rows = self.rows.select(alive)
            alive = self.rows.state.all_rows
        self.first_unfinished = int(self.rows.number[alive[0]]) if len(alive) else self.entered

    def answers(self, first, end):
        """What ``decode_states`` yields of the rows first .. end - 1."""
        counts = self.counts[first:end].tolist()
        tokens = self.written[first:end].tolist()
        answers = [ids[:count] for ids, count in zip(tokens, counts, strict=True)]
        return answers, [count < self.limit for count in counts]


def answer_start(model, state):
    """Inputs (R, S, D) and positions (R, S) with which the answer starts.

    These are the last thought, where it has not been read, and the forced end-of-thinking token.
    """
    end = torch.full_like(state.prompt_lengths, model.config.end_latent_token_id)
    position = state.prompt_lengths + state.num_thoughts  # (R,) of that token
    if state.thought is None:
        return model.embed(end)[:, None], position[:, None]
    x = torch.stack((state.thought, model.embed(end)), dim=1)  # (R, 2, D)
    return x, torch.stack((position - 1, position), dim=1)


def read_answer(model, sampling, state, x, positions, at_start=False):
    """Hidden states (R, S, D) at inputs x (R, S, D) of the answer, at positions (R, S).

    at_start: x begins with those of ``answer_start``.
    """
    steps = steps_of(positions, state.prompt_lengths[:, None])
    num_thoughts = state.num_thoughts if at_start and state.thought is not None else None
    hook = sampling.answer_hook(model, state.rng_keys, steps, num_thoughts)
    return model.extend(x, positions, state.prefix, state.suffix, hook)


def answer_step(model, sampling, token, position, rng_keys, prompt_lengths, prefix, window, mask):
    """The next tokens (R,) after tokens (R,) of the answers, at their positions (R,).

    window, mask: as SuffixCache.open gives them. Nothing waits for the device here, and nothing
    depends on a value.
    """
    steps = steps_of(position, prompt_lengths)  # (R,)
    hook = sampling.answer_hook(model, rng_keys, steps[:, None])
    x = model.embed(token)[:, None]  # (R, 1, D)
    hidden = model.step(x, position[:, None], prefix, window, mask, hook)[:, 0]  # (R, D)
    return sampling.next_tokens(model, hidden, rng_keys, steps)


def steps_of(positions, prompt_lengths):
    """Steps, as in src.sampling.samplers, of positions."""
    return positions - (prompt_lengths - 1)
