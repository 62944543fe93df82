"""The two caches that sampling needs, and attention over both.

The keys and values of a prompt are kept once for a *group* of rows (all trajectories of a question),
those of thoughts and answer tokens once a row. Rows of a group are adjacent: row ``r`` belongs to
group ``r // (R // G)``. A group may be a single row, when every trajectory has a prompt of its own.

Prompts are padded on the right here, whatever side the caller pads: causal attention then never sees
the padding, and a longer neighbour in the batch does not move a question's own numbers.

Shapes: G groups, R rows, S new positions, T own positions so far, L prompt length, H heads, K head width,
D model width. Keys and values may have fewer heads, H', each for H / H' neighbouring query heads.
"""

from copy import copy
from dataclasses import dataclass, field

import torch


@dataclass
class PromptCache:
    """Keys and values of the prompts: a (G, H', L, K) pair a layer.

    ``padding`` is (G, 1, 1, L), true where a prompt is padded, or None when none is.
    """

    padding: torch.Tensor | None
    layers: list = field(default_factory=list)

    @staticmethod
    def padding_of(lengths, longest):
        """The ``padding`` of prompts of true lengths (G,), padded to ``longest``."""
        padding = torch.arange(longest, device=lengths.device) >= lengths[:, None]  # (G, L)
        return padding[:, None, None, :] if bool(padding.any()) else None

    @property
    def groups(self):
        return self.layers[0][0].shape[0]

    @classmethod
    def room(cls, part, lengths):
        """Empty room for the prompts of true lengths (G,), of which ``part`` holds a first few."""
        count, longest = len(lengths), part.layers[0][0].shape[2]
        layers = [tuple(x.new_empty(count, *x.shape[1:]) for x in pair) for pair in part.layers]
        return cls(cls.padding_of(lengths, longest), layers)

    def put(self, first, part):
        """Copies the prompts of ``part`` to the places from ``first`` on."""
        for to, pair in zip(self.layers, part.layers, strict=True):
            for old, new in zip(to, pair, strict=True):
                old[first : first + len(new)] = new

    def select(self, groups):
        """The cache of the given groups, an index tensor or a slice."""
        padding = None if self.padding is None else self.padding[groups]
        return PromptCache(padding, [(k[groups], v[groups]) for k, v in self.layers])


class GrowingCache:
    """Own keys and values of every row, kept by concatenation, so that gradients flow (training)."""

    hidden = None

    def __init__(self):
        self.layers = {}
        self.length = 0

    def append(self, layer, k, v):
        """Adds (R, H', S, K) keys and values; returns all of the layer so far."""
        if layer in self.layers:
            k = torch.cat((self.layers[layer][0], k), dim=2)
            v = torch.cat((self.layers[layer][1], v), dim=2)
        self.layers[layer] = (k, v)
        return k, v


class FixedCache:
    """Own keys and values of every row in buffers of fixed size (sampling): (R, H', capacity, K).

    hidden (R, T'), or None: which of the first T' positions a row does not see.
    """

    hidden = None

    def __init__(self, layers, rows, heads, capacity, width, like):
        """like: a tensor of the wanted dtype and device."""
        self.buffer = like.new_empty((layers, 2, rows, heads, capacity, width))
        self.length = 0

    def append(self, layer, k, v):
        """Writes (R, H', S, K) keys and values after ``length``; returns all of the layer so far."""
        end = self.length + k.shape[2]
        keys, values = self.buffer[layer]
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]

    def fork(self):
        """A cache that ends here, over the same buffer: of two forks one must be done with before the
        other goes on."""
        return copy(self)

    def select(self, rows, length=None, room=None):
        """A cache of the given rows, an index tensor; its order is the new order, rows may repeat.

        length: only so many of their positions. room: for so many more, None: as large as this one.
        """
        new, old = copy(self), self.buffer
        new.length = self.length if length is None else length
        capacity = old.shape[4] if room is None else new.length + room
        new.buffer = old.new_empty(*old.shape[:2], len(rows), old.shape[3], capacity, old.shape[5])
        # no page beyond is touched
        new.buffer[..., : new.length, :] = old[:, :, rows, :, : new.length]
        new.hidden = None if self.hidden is None else self.hidden[rows, : new.length]
        return new

    def put(self, rows, part):
        """Copies all positions of ``part``, a cache of the given rows, to their places here."""
        if part.buffer is not self.buffer:
            self.buffer[:, :, rows, :, : part.length] = part.buffer[..., : part.length, :]

    def hide(self, counts):
        """From now on row r sees only the first counts[r] of the positions that are here."""
        hidden = torch.arange(self.length, device=counts.device) >= counts[:, None]  # (R, T)
        self.hidden = hidden if bool(hidden.any()) else None
        # a weight of 0 does not silence what may stand there, NaN
        self.buffer[..., : self.length, :].masked_fill_(hidden[:, None, :, None], 0)


def attend(q, k_own, v_own, own_hidden, prompt, padding):
    """Attention of new positions to their prompt and to their own past, one softmax over both.

    q (R, H, S, K), own (R, H', T, K) of which the last S are the new positions themselves, own_hidden
    as FixedCache.hidden, prompt pair (G, H', L, K); returns (R, S, D).
    """
    (k_prompt, v_prompt), (rows, n_head, new, width) = prompt, q.shape
    groups, heads, own = k_prompt.shape[0], k_own.shape[1], k_own.shape[2]
    members, queries = rows // groups, n_head // heads * new  # queries: of one key head, U

    def by_group(x):  # (R, H', U, X) -> (G, H', M * U, X)
        x = x.view(groups, members, heads, queries, -1).transpose(1, 2)
        return x.reshape(groups, heads, members * queries, -1)

    def by_row(x):  # the way back
        x = x.view(groups, heads, members, queries, -1).transpose(1, 2)
        return x.reshape(rows, heads, queries, -1)

    q = (q * width**-0.5).reshape(rows, heads, queries, width)
    to_own = q @ k_own.transpose(2, 3)  # (R, H', U, T)
    if new > 1:
        future = torch.ones(new, own, dtype=torch.bool, device=q.device).triu(own - new + 1)
        to_own = to_own.masked_fill(future.repeat(n_head // heads, 1), float("-inf"))
    if own_hidden is not None:
        to_own[..., : own_hidden.shape[1]].masked_fill_(own_hidden[:, None, None], float("-inf"))
    to_prompt = by_group(q) @ k_prompt.transpose(2, 3)  # (G, H', M * U, L)
    if padding is not None:
        to_prompt = to_prompt.masked_fill(padding, float("-inf"))
    # Own scores come first: padding at the end of the prompt then moves no other element.
    weights = torch.cat((by_group(to_own), to_prompt), dim=-1).softmax(-1).to(v_own.dtype)
    from_own = by_row(weights[..., :own]) @ v_own  # (R, H', U, K)
    from_prompt = by_row(weights[..., own:] @ v_prompt)  # (R, H', U, K)
    out = (from_own + from_prompt).view(rows, n_head, new, width)
    return out.transpose(1, 2).reshape(rows, new, n_head * width)


def heads(x, width):
    """(R, S, H * K) -> (R, H, S, K)."""
    return x.unflatten(-1, (-1, width)).transpose(1, 2)
