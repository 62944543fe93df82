"""The two key-value caches of sampling, and attention over both.

The prefix cache holds the keys and values of the prompts, once for a *group* of rows: all
trajectories of a question. The suffix cache holds those of latent thoughts and answer tokens, once
a row. Rows of a group are adjacent: row ``r`` belongs to group ``r // (R // G)``. A group is a
single row where every trajectory reads the prompt under dropout masks of its own.

Prompts are padded on the right here, whatever side the caller pads. Causal attention then never
sees the padding, and a longer prompt in the batch does not change the numbers of a shorter one.

Shapes: G groups, R rows, S new positions, T suffix positions so far, L prompt length, H heads, K
head width, D model width. With grouped-query attention there are H' key-value heads, each for
H / H' neighbouring query heads.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from src.sampling.samplers import PROMPT, SUFFIX
from src.sampling.trajectories import thought_mask


@dataclass
class PrefixCache:
    """Keys and values of the prompts: a pair of (G, H', L, K) for each layer.

    padding: (G, 1, 1, L), true where a prompt is padded, or None when none is.
    """

    padding: torch.Tensor | None
    layers: list = field(default_factory=list)

    @staticmethod
    def padding_of(prompt_lengths, longest):
        """The ``padding`` of prompts of ``prompt_lengths`` (G,), padded to ``longest``."""
        positions = torch.arange(longest, device=prompt_lengths.device)
        padding = positions >= prompt_lengths[:, None]  # (G, L)
        return padding[:, None, None, :] if bool(padding.any()) else None

    @property
    def num_groups(self):
        return self.layers[0][0].shape[0]

    @classmethod
    def allocate(cls, like, prompt_lengths):
        """Uninitialized memory for prompts of ``prompt_lengths`` (G,), shaped like ``like``."""
        count, longest = len(prompt_lengths), like.layers[0][0].shape[2]
        layers = [tuple(x.new_empty(count, *x.shape[1:]) for x in pair) for pair in like.layers]
        return cls(cls.padding_of(prompt_lengths, longest), layers)

    def write(self, first, part):
        """Copies the prompts of ``part`` into the groups from ``first`` on."""
        for pair, new_pair in zip(self.layers, part.layers, strict=True):
            for old, new in zip(pair, new_pair, strict=True):
                old[first : first + len(new)] = new

    def select(self, groups):
        """The cache of the given groups, an index tensor or a slice."""
        padding = None if self.padding is None else self.padding[groups]
        return PrefixCache(padding, [(k[groups], v[groups]) for k, v in self.layers])


class DynamicSuffixCache:
    """Suffix cache that grows by concatenation, so that gradients flow (training)."""

    masked = None

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


class SuffixCache:
    """Suffix cache in a buffer of fixed size (sampling).

    buffer: (layers, 2, R, H', capacity, K), keys then values. length: positions in use.
    masked: (R, T'), true where a row does not attend to one of its first T' positions, or None.
    """

    def __init__(self, buffer, length=0, masked=None):
        self.buffer, self.length, self.masked = buffer, length, masked

    def append(self, layer, k, v):
        """Writes (R, H', S, K) keys and values after ``length``; returns all of the layer so far.

        The caller adds S to ``length`` after the last layer.
        """
        end = self.length + k.shape[2]
        keys, values = self.buffer[layer]
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]

    def select(self, rows, length=None, extra=None):
        """A copy of the given rows, an index tensor; rows may repeat.

        length: crops the copy to so many positions. extra: room for so many more; None keeps
        the capacity.
        """
        length = self.length if length is None else length
        layers, pair, _, heads, capacity, width = self.buffer.shape
        capacity = capacity if extra is None else length + extra
        buffer = self.buffer.new_empty(layers, pair, len(rows), heads, capacity, width)
        # Positions after ``length`` are not copied: their memory pages stay untouched.
        buffer[..., :length, :] = self.buffer[:, :, rows, :, :length]
        masked = None if self.masked is None else self.masked[rows, :length]
        return SuffixCache(buffer, length, masked)

    def write(self, rows, part):
        """Copies the cache ``part`` of the given rows, an index tensor, to these rows."""
        self.buffer[:, :, rows, :, : part.length] = part.buffer[..., : part.length, :]
        self.length = part.length

    def crop(self, length):
        """Forgets the positions after ``length``, as in transformers' DynamicCache."""
        self.length = length

    def mask(self, num_positions):
        """From now on row r attends only to its first ``num_positions[r]`` (R,) positions."""
        masked = ~thought_mask(num_positions, self.length)  # (R, T)
        self.masked = masked if bool(masked.any()) else None
        # Masked positions may hold NaN, and 0 * NaN is NaN: zero them.
        self.buffer[..., : self.length, :].masked_fill_(masked[:, None, :, None], 0)


def attend_in_prompt(q, k, v, drop=None):
    """Causal attention of prompts to themselves: q (G, H, L, K), k and v (G, H', L, K).

    drop: drops attention weights, see samplers.NoDropout.attention. Returns (G, L, D).
    """
    grouped = q.shape[1] != k.shape[1]
    if drop is None:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        return merge_heads(out)
    if grouped:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)  # (G, H, L, L)
    future = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).triu(1)
    weights = scores.masked_fill_(future, float("-inf")).softmax(-1).to(v.dtype)
    return merge_heads(drop(weights, PROMPT) @ v)


def attend(q, k_suffix, v_suffix, masked, prefix, padding, drop=None):
    """Attention of new positions to their prompt and to their suffix, one softmax over both.

    q (R, H, S, K); suffix (R, H', T, K), of which the last S are the new positions; masked as
    SuffixCache.masked; prefix: a pair of (G, H', L, K). drop: drops attention weights, see
    samplers.NoDropout.attention. Returns (R, S, D).
    """
    (k_prefix, v_prefix), (rows, n_head, new, width) = prefix, q.shape
    groups, n_kv_head, suffix_length = k_prefix.shape[0], k_suffix.shape[1], k_suffix.shape[2]
    members, queries = rows // groups, n_head // n_kv_head * new  # U queries of one key-value head

    def by_group(x):  # (R, H', U, X) -> (G, H', M * U, X)
        x = x.view(groups, members, n_kv_head, queries, -1).transpose(1, 2)
        return x.reshape(groups, n_kv_head, members * queries, -1)

    def by_row(x):  # (G, H', M * U, X) -> (R, H', U, X)
        x = x.view(groups, n_kv_head, members, queries, -1).transpose(1, 2)
        return x.reshape(rows, n_kv_head, queries, -1)

    q = (q * width**-0.5).reshape(rows, n_kv_head, queries, width)
    to_suffix = q @ k_suffix.transpose(2, 3)  # (R, H', U, T)
    if new > 1:
        future = torch.ones(new, suffix_length, dtype=torch.bool, device=q.device)
        future = future.triu(suffix_length - new + 1).repeat(n_head // n_kv_head, 1)  # (U, T)
        to_suffix = to_suffix.masked_fill(future, float("-inf"))
    if masked is not None:
        to_suffix[..., : masked.shape[1]].masked_fill_(masked[:, None, None], float("-inf"))
    to_prefix = by_group(q) @ k_prefix.transpose(2, 3)  # (G, H', M * U, L)
    if padding is not None:
        to_prefix = to_prefix.masked_fill(padding, float("-inf"))
    # The suffix comes first: padding at the prompt's end then shifts no other element.
    weights = torch.cat((by_group(to_suffix), to_prefix), dim=-1).softmax(-1).to(v_suffix.dtype)
    of_suffix, of_prefix = by_row(weights[..., :suffix_length]), weights[..., suffix_length:]
    if drop is not None:
        by_head, numbers = (rows, n_head, new, -1), _numbers(masked, suffix_length)
        of_suffix = drop(of_suffix.reshape(by_head), SUFFIX, numbers).view_as(of_suffix)
        of_prefix = by_group(drop(by_row(of_prefix).reshape(by_head), PROMPT))
    from_suffix = of_suffix @ v_suffix  # (R, H', U, K)
    from_prefix = by_row(of_prefix @ v_prefix)  # (R, H', U, K)
    return merge_heads((from_suffix + from_prefix).view(rows, n_head, new, width))


def _numbers(masked, length):
    """The number (R, T) of each suffix position among those that its row attends to.

    Masked positions do not count, because how many a row has depends on the rest of its batch. None
    when no position is masked: the numbers are 0 .. T - 1.
    """
    if masked is None:
        return None
    after = masked.new_zeros(len(masked), length - masked.shape[1])
    attended = ~torch.cat((masked, after), dim=1)  # (R, T)
    return (attended.cumsum(1) - 1).clamp_(min=0)


def split_heads(x, width):
    """(R, S, H * K) -> (R, H, S, K)."""
    return x.unflatten(-1, (-1, width)).transpose(1, 2)


def merge_heads(x):
    """(R, H, S, K) -> (R, S, H * K)."""
    return x.transpose(1, 2).flatten(2)
