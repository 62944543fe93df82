"""The two key-value caches of sampling.

The prefix cache holds the keys and values of the prompts, once for a *group* of rows: all
trajectories of a question. The suffix cache holds those of latent thoughts and answer tokens, once
a row. A group is a single row where every trajectory reads the prompt under dropout masks of its
own.

Prompts are padded on the right here, whatever side the caller pads. Causal attention then never
sees the padding, and a longer prompt in the batch does not change the numbers of a shorter one.

Shapes: G groups, R rows, S new positions, T suffix positions in use, C capacity, L prompt length,
K head width. With grouped-query attention there are H' key-value heads. New keys and values come
together, kv (R, S, 2, H', K).
"""

from dataclasses import dataclass, replace

import torch

_ALIGNMENT = 16  # of a bias's rows: CUDA's attention asks for it
_GAP = 64  # numbers between positions: at a distance of a power of two they evict each other


@dataclass
class Grouping:
    """Which prompt each row reads, where groups are not all equally many adjacent rows.

    groups (R,): the group of each row. members: M, the rows of the largest group. pick (G * M,): a
    row for every place of a group, any where it has fewer. place (R,): where a row was picked.
    repeats: None; or, where a few large groups would leave most places empty, the groups (G',) with
    the large ones several times, so that M is smaller. G' then stands for G above.
    """

    groups: torch.Tensor
    members: int
    pick: torch.Tensor
    place: torch.Tensor
    repeats: torch.Tensor | None

    @classmethod
    def of(cls, groups, num_groups):
        """The Grouping of rows by their groups (R,); None where rows are M a group, in order."""
        rows = torch.arange(len(groups), device=groups.device)
        counts = torch.bincount(groups, minlength=num_groups)  # (G,)
        order, first = groups.argsort(stable=True), counts.cumsum(0) - counts
        rank = torch.empty_like(rows).index_copy_(0, order, rows - first[groups[order]])  # (R,)
        members, repeats, first_place = int(counts.max()), None, groups
        if num_groups * members > 2 * len(rows):
            members = -(-len(rows) // num_groups)
            tiles = (counts + members - 1) // members  # (G,)
            repeats = torch.arange(num_groups, device=groups.device).repeat_interleave(tiles)
            first_place = (tiles.cumsum(0) - tiles)[groups]
        place, places = first_place * members + rank, members * num_groups
        if repeats is not None:
            places = members * len(repeats)
        elif len(rows) == places and torch.equal(place, rows):
            return None
        pick = rows.new_zeros(places).index_copy_(0, place, rows)
        return cls(groups, members, pick, place, repeats)


@dataclass
class PrefixCache:
    """Keys and values of the prompts: a pair of (G, H', L, K) for each layer.

    lengths (G,): of the prompts. bias: (G, 1, 1, L'), minus infinity where a prompt is padded, else
    0; None when none is padded. L' is L rounded up, see _ALIGNMENT. grouping: which rows read which
    prompt, None: R / G adjacent rows each.
    """

    lengths: torch.Tensor
    layers: list
    bias: torch.Tensor | None
    grouping: Grouping | None = None

    @classmethod
    def of(cls, lengths, layers):
        """The cache of prompts of ``lengths`` (G,), with the bias that they need."""
        k, _ = layers[0]
        longest = k.shape[2]
        positions = _positions(-(-longest // _ALIGNMENT) * _ALIGNMENT, lengths)
        padding = positions >= lengths[:, None]  # (G, L')
        if not bool(padding[:, :longest].any()):
            return cls(lengths, layers, None)
        bias = torch.zeros_like(padding, dtype=k.dtype).masked_fill_(padding, float("-inf"))
        return cls(lengths, layers, bias[:, None, None])

    @property
    def num_groups(self):
        return len(self.layers[0][0])

    def groups_of(self, rows):
        """The group (R,) of each of R ``rows``."""
        if self.grouping is not None:
            return self.grouping.groups
        groups = torch.arange(self.num_groups, device=self.layers[0][0].device)
        return groups.repeat_interleave(rows // self.num_groups)

    @classmethod
    def allocate(cls, like, lengths, longest):
        """Memory for prompts of ``lengths`` (G,), at most ``longest``, by the model of ``like``."""
        _, heads, _, width = like.layers[0][0].shape
        shape = (len(lengths), heads, longest, width)
        layers = [tuple(x.new_empty(shape) for x in pair) for pair in like.layers]
        return cls.of(lengths, layers)

    def write(self, first, part):
        """Copies the prompts of ``part`` into the groups from ``first`` on."""
        for pair, new_pair in zip(self.layers, part.layers, strict=True):
            for old, new in zip(pair, new_pair, strict=True):
                of_part = old[first : first + len(new)]
                of_part[:, :, : new.shape[2]] = new
                of_part[:, :, new.shape[2] :].zero_()  # padding, and 0 * NaN would be NaN

    def select(self, groups):
        """The cache for rows of the given groups (R,). Prompts that no row reads are dropped."""
        kept, groups = groups.unique(return_inverse=True)
        cache = self
        if len(kept) < self.num_groups:
            layers = [(k[kept], v[kept]) for k, v in self.layers]
            cache = PrefixCache.of(self.lengths[kept], layers)
        return replace(cache, grouping=Grouping.of(groups, len(kept)))

    def join(self, other, rows, other_rows):
        """The cache of ``rows`` rows of this one and ``other_rows`` of another, in this order."""
        lengths = torch.cat((self.lengths, other.lengths))
        longest = max(cache.layers[0][0].shape[2] for cache in (self, other))
        joined = PrefixCache.allocate(self, lengths, longest)
        joined.write(0, self)
        joined.write(self.num_groups, other)
        groups = torch.cat((self.groups_of(rows), self.num_groups + other.groups_of(other_rows)))
        return replace(joined, grouping=Grouping.of(groups, len(lengths)))


class SinglePass:
    """In place of a suffix cache where one forward pass reads all positions of the rows."""

    def __init__(self, device):
        self.device = device

    def open(self, new):
        """As SuffixCache.open."""
        return self, _future(new, new, self.device)

    def append(self, layer, kv):
        """Keys and values (R, H', S, K) of kv (R, S, 2, H', K). Nothing is kept."""
        return kv.permute(2, 0, 3, 1, 4).unbind()


class DynamicSuffixCache:
    """Suffix cache that grows by concatenation, so that gradients flow (training)."""

    def __init__(self, device):
        self.layers, self.device = {}, device
        self.length = 0

    def open(self, new):
        """As SuffixCache.open."""
        self.length += new
        return self, _future(new, self.length, self.device)

    def append(self, layer, kv):
        """Adds kv (R, S, 2, H', K); returns keys and values (R, H', T, K) of the layer so far."""
        kv = kv.permute(2, 0, 3, 1, 4)  # (2, R, H', S, K)
        if layer in self.layers:
            kv = torch.cat((self.layers[layer], kv), dim=3)
        self.layers[layer] = kv
        return kv.unbind()


class SuffixCache:
    """Suffix cache in memory of fixed size (sampling).

    layers: a tensor (2, C, R, H', K) for each, keys then values. Positions come first: those in use
    are then read as few long stretches of memory, which on a CPU takes half the time. length: T,
    the positions of the longest row. lengths (R,): those of each row, None when all have
    ``length``.
    """

    def __init__(self, layers, length=0, lengths=None):
        self.layers, self.length, self.lengths = layers, length, lengths

    @classmethod
    def allocate(cls, like, layers, capacity, rows, heads, width):
        """An empty cache with the dtype and device of the tensor ``like``."""
        numbers = rows * heads * width
        shape = (2, capacity, numbers + _GAP)
        flat = [like.new_empty(shape)[..., :numbers] for _ in range(layers)]
        return cls([x.unflatten(-1, (rows, heads, width)) for x in flat])

    @property
    def shape(self):
        """C, R, H', K."""
        return self.layers[0].shape[1:]

    def _like(self, capacity, rows):
        """An empty cache with the layers, heads and width of this one."""
        return self.allocate(self.layers[0], len(self.layers), capacity, rows, *self.shape[2:])

    def open(self, new):
        """Prepares the reading of ``new`` positions of every row.

        Returns the Window into which they go, and the ``mask`` of attention.attend.
        """
        first, self.length = self.length, min(self.length + new, self.shape[0])
        used = [x[:, : self.length] for x in self.layers]
        device = used[0].device
        if self.lengths is None:
            positions = torch.arange(first, first + new, device=device)  # (S,)
            positions = positions.clamp_(max=self.length - 1)  # finished rows may be at the end
            return Window(used, positions), _future(new, self.length, device)
        for x in used:
            x[:, first:].zero_()  # rows do not fill it in step, and 0 * NaN would be NaN
        window, mask = _ragged_window(used, self.lengths, new)
        self.lengths = self.lengths + new
        return window, mask

    def set_lengths(self, lengths):
        """From now on row r has ``lengths[r]`` (R,) positions, at most ``length``."""
        beyond = _positions(self.length, lengths) >= lengths[:, None]  # (R, T)
        if not bool(beyond.any()):
            return
        self.lengths = lengths
        for x in self.layers:  # what is masked may hold NaN, and 0 * NaN is NaN
            x[:, : self.length].masked_fill_(beyond.T[..., None, None], 0)

    def fork(self):
        """A cache in the same memory; the positions that it appends are none of this one's."""
        return SuffixCache(self.layers, self.length, self.lengths)

    def join(self, other):
        """The cache of this one's rows and another's, with the larger capacity of the two."""
        parts, rows = (self, other), self.shape[1]
        capacity = max(part.shape[0] for part in parts)
        joined = self._like(capacity, rows + other.shape[1])
        joined.length = max(part.length for part in parts)
        for part, of_part in zip(parts, (slice(0, rows), slice(rows, None)), strict=True):
            for x, of_layer in zip(joined.layers, part.layers, strict=True):
                x[:, : part.length, of_part] = of_layer[:, : part.length]
                # What is masked may hold NaN, and 0 * NaN is NaN.
                x[:, part.length : joined.length, of_part].zero_()
        if any(part.lengths is not None or part.length < joined.length for part in parts):
            joined.lengths = torch.cat([part.lengths_of_rows for part in parts])
        return joined

    @property
    def lengths_of_rows(self):
        """The positions (R,) of each row."""
        if self.lengths is not None:
            return self.lengths
        return torch.full((self.shape[1],), self.length, device=self.layers[0].device)

    def select(self, rows, length=None, extra=None):
        """A copy of the given rows, an index tensor; rows may repeat.

        length: crops all rows to so many positions, which each must have. extra: room for so many
        more; None keeps the capacity.
        """
        lengths = None if self.lengths is None or length is not None else self.lengths[rows]
        if length is None:
            length = self.length if lengths is None else int(lengths.max())
        copy = self._like(self.shape[0] if extra is None else length + extra, len(rows))
        for x, of_layer in zip(copy.layers, self.layers, strict=True):
            # Positions after ``length`` are not copied: their memory pages stay untouched.
            x[:, :length] = of_layer[:, :length, rows]
        copy.length, copy.lengths = length, lengths
        return copy

    def write(self, rows, part):
        """Copies the cache ``part`` of the given rows, an index tensor, to these rows."""
        for x, of_part in zip(self.layers, part.layers, strict=True):
            x[:, : part.length, rows] = of_part[:, : part.length]
        self.length = part.length


@dataclass
class Window:
    """The positions of a SuffixCache that a forward pass reads, and where it writes.

    used: a tensor (2, T, R, H', K) for each layer. positions (S,): the new ones of all rows; or
    (S * R,), with the ``rows`` (S * R,) whose they are.
    """

    used: list
    positions: torch.Tensor
    rows: torch.Tensor | None = None

    def append(self, layer, kv):
        """Writes kv (R, S, 2, H', K); returns keys and values (R, H', T, K) of the layer."""
        new, used = kv.permute(2, 1, 0, 3, 4), self.used[layer]  # (2, S, R, H', K)
        if self.rows is None:
            used.index_copy_(1, self.positions, new)
        else:
            used[:, self.positions, self.rows] = new.flatten(1, 2)
        return used.permute(0, 2, 3, 1, 4).unbind()


def _ragged_window(used, lengths, new):
    # Finished rows that wait to be dropped may have come to the end of the memory.
    last = used[0].shape[1] - 1
    positions = (lengths + _positions(new, lengths)[:, None]).clamp(max=last)  # (S, R)
    rows = _positions(len(lengths), lengths).expand_as(positions)
    mask = _positions(last + 1, lengths) > positions.T[..., None]  # (R, S, T)
    return Window(used, positions.flatten(), rows.flatten()), mask


def _positions(length, like):
    return torch.arange(length, device=like.device)


def _future(new, length, device):
    """Which suffix positions a new one does not see, (1, S, T), where all rows have ``length``."""
    if new == 1:
        return None
    future = torch.ones(new, length, dtype=torch.bool, device=device)
    return future.triu(length - new + 1)[None]
