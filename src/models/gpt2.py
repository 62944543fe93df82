"""GPT-2's forward pass with the two caches that sampling needs, over the weights of a HF GPT2Model.

The keys and values of a prompt are kept once for a *group* of rows (all trajectories of a question),
those of thoughts and answer tokens once a row. Rows of a group are adjacent: row ``r`` belongs to
group ``r // (R // G)``. A group may be a single row, when every trajectory has a prompt of its own.

Prompts are padded on the right here, whatever side the caller pads: causal attention then never sees
the padding, and a longer neighbour in the batch does not move a question's own numbers.

Shapes: G groups, R rows, S new positions, L prompt length, H heads, K head width, D model width.
"""

from copy import copy
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from src.sampling.samplers import KEEP_ALL

ATTENTION, MLP = range(2)  # dropout sites of a block: after attention, after the MLP


@dataclass
class PromptCache:
    """Keys and values of the prompts: a (G, H, L, K) pair a layer.

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

    def __init__(self):
        self.layers = {}
        self.length = 0

    def append(self, layer, k, v):
        """Adds (R, H, S, K) keys and values; returns all of the layer so far."""
        if layer in self.layers:
            k = torch.cat((self.layers[layer][0], k), dim=2)
            v = torch.cat((self.layers[layer][1], v), dim=2)
        self.layers[layer] = (k, v)
        return k, v


class FixedCache:
    """Own keys and values of every row in buffers of fixed size (sampling): (R, H, capacity, K)."""

    def __init__(self, config, rows, capacity, dtype, device):
        width = config.n_embd // config.n_head
        shape = (config.n_layer, 2, rows, config.n_head, capacity, width)
        self.buffer = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    def append(self, layer, k, v):
        """Writes (R, H, S, K) keys and values after ``length``; returns all of the layer so far."""
        end = self.length + k.shape[2]
        keys, values = self.buffer[layer]
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]

    def fork(self):
        """A cache that ends here, over the same buffer: of two forks one must be done with before the
        other goes on."""
        return copy(self)

    def select(self, rows, length=None):
        """A cache of the given rows, an index tensor; its order is the new order, rows may repeat.

        ``length``: only so many of their positions.
        """
        new, old = copy(self), self.buffer
        new.length = self.length if length is None else length
        new.buffer = old.new_empty(*old.shape[:2], len(rows), *old.shape[3:])
        # no page beyond is touched
        new.buffer[..., : new.length, :] = old[:, :, rows, :, : new.length]
        return new


def check_config(config):
    """Raises ValueError for the rare GPT-2 variants that this forward pass does not compute."""
    if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights:
        raise ValueError("attention scaled in GPT-2's uncommon ways is not supported")


def _linear(conv, x):
    """HF's Conv1D, weight (in, out), in one fused call."""
    flat = torch.addmm(conv.bias, x.reshape(-1, x.shape[-1]), conv.weight)
    return flat.view(*x.shape[:-1], -1)


def _heads(x, n_head):
    return x.view(*x.shape[:2], n_head, -1).transpose(1, 2)  # (R, S, D) -> (R, H, S, K)


def _activation(transformer):
    if transformer.config.activation_function == "gelu_new":
        return lambda x: F.gelu(x, approximate="tanh")  # the same function, fused
    return transformer.h[0].mlp.act


def _attend(q, k_own, v_own, prompt, padding):
    """Attention of new positions to their prompt and to their own past, one softmax over both.

    q (R, H, S, K), own (R, H, T, K) of which the last S are the new positions themselves,
    prompt pair (G, H, L, K); returns (R, S, D).
    """
    (k_prompt, v_prompt), (rows, n_head, new, width) = prompt, q.shape
    groups, own = k_prompt.shape[0], k_own.shape[2]
    members = rows // groups

    def by_group(x):  # (R, H, S, X) -> (G, H, M * S, X)
        x = x.view(groups, members, n_head, new, -1).transpose(1, 2)
        return x.reshape(groups, n_head, members * new, -1)

    def by_row(x):  # the way back
        x = x.view(groups, n_head, members, new, -1).transpose(1, 2)
        return x.reshape(rows, n_head, new, -1)

    q = q * width**-0.5
    to_own = q @ k_own.transpose(2, 3)  # (R, H, S, T)
    if new > 1:
        future = torch.ones(new, own, dtype=torch.bool, device=q.device).triu(own - new + 1)
        to_own = to_own.masked_fill(future, float("-inf"))
    to_prompt = by_group(q) @ k_prompt.transpose(2, 3)  # (G, H, M * S, L)
    if padding is not None:
        to_prompt = to_prompt.masked_fill(padding, float("-inf"))
    # Own scores come first: padding at the end of the prompt then moves no other element.
    weights = torch.cat((by_group(to_own), to_prompt), dim=-1).softmax(-1).to(v_own.dtype)
    from_own = by_row(weights[..., :own]) @ v_own  # (R, H, S, K)
    from_prompt = by_row(weights[..., own:] @ v_prompt)  # (R, H, S, K)
    return (from_own + from_prompt).transpose(1, 2).reshape(rows, new, n_head * width)


def _mlp(block, x, layer, act, drop):
    hidden = act(_linear(block.mlp.c_fc, block.ln_2(x)))  # (R, S, 4 D)
    return x + drop(_linear(block.mlp.c_proj, hidden), layer, MLP)


def prefill(transformer, x, lengths, drop=KEEP_ALL):
    """Reads the prompts.

    x (G, L, D) token embeddings padded on the right, lengths (G,) true lengths, drop a dropout hook.
    Returns the final hidden state (after the last layer norm) of each prompt's last token, (G, D),
    and the PromptCache.
    """
    n_head, act = transformer.config.n_head, _activation(transformer)
    rows = torch.arange(x.shape[0], device=x.device)
    x = drop.embedding(x + transformer.wpe.weight[: x.shape[1]].to(x.dtype))  # (G, L, D)
    cache = PromptCache(PromptCache.padding_of(lengths, x.shape[1]))
    for layer, block in enumerate(transformer.h):
        qkv = _linear(block.attn.c_attn, block.ln_1(x)).split(x.shape[-1], dim=-1)
        q, k, v = (_heads(part, n_head) for part in qkv)  # (G, H, L, K)
        cache.layers.append((k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out = out.transpose(1, 2).reshape(x.shape)
        if layer == len(transformer.h) - 1:  # only the last token's state is asked for
            last = (rows[:, None], (lengths - 1)[:, None])
            x, out, drop = x[last], out[last], drop.at(last)
        x = x + drop(_linear(block.attn.c_proj, out), layer, ATTENTION)
        x = _mlp(block, x, layer, act, drop)
    return transformer.ln_f(x[:, 0]), cache


def extend(transformer, x, positions, prompt, own, drop=KEEP_ALL):
    """Reads further positions of every row and adds them to its own cache.

    x (R, S, D) thoughts or token embeddings, positions (R, S), prompt a PromptCache, own a
    FixedCache or GrowingCache. Returns the final hidden states (R, S, D).
    """
    n_head, act = transformer.config.n_head, _activation(transformer)
    x = drop.embedding(x + transformer.wpe(positions).to(x.dtype))  # (R, S, D)
    for layer, block in enumerate(transformer.h):
        qkv = _linear(block.attn.c_attn, block.ln_1(x)).split(x.shape[-1], dim=-1)
        q, k, v = (_heads(part, n_head) for part in qkv)  # (R, H, S, K)
        k, v = own.append(layer, k, v)  # (R, H, T, K)
        out = _attend(q, k, v, prompt.layers[layer], prompt.padding)
        x = x + drop(_linear(block.attn.c_proj, out), layer, ATTENTION)
        x = _mlp(block, x, layer, act, drop)
    own.length += x.shape[1]
    return transformer.ln_f(x)
