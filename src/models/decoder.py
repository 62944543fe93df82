"""The forward pass of a decoder-only transformer over prompts and rows (src/models/kv_cache.py).

src/models/gpt2.py and src/models/llama.py hold what differs between the architectures. The weights
are those of the Hugging Face model that the mixin is combined with.
"""

from dataclasses import dataclass, replace

import torch
from torch.utils.checkpoint import checkpoint

from src.models.attention import attend, attend_from_last, attend_in_prompt, by_query
from src.models.kv_cache import PrefixCache, SinglePass, SuffixCache
from src.sampling.memory import cache_shape
from src.sampling.samplers import ATTENTION, MLP, NO_HOOK


@dataclass
class PromptStart:
    """Prompts read up to the first dropout mask, which is in the first block.

    x (G, L, D): the residual stream there. out (G, L, D): what is dropped and added to it. kv
    (G, L, 2, H', K): of the first block. rotary: of all positions, or None.
    """

    x: torch.Tensor
    out: torch.Tensor
    kv: torch.Tensor
    rotary: tuple | None

    def select(self, groups):
        """The start of the prompts of the given groups, an index tensor."""
        return PromptStart(self.x[groups], self.out[groups], self.kv[groups], self.rotary)


class Decoder:
    """Mixin before a Hugging Face model: reads prompts once and then the rows' suffixes.

    A subclass gives ``blocks``, its layers; ``final_norm``; ``residual_outputs(block)``, the two
    linear maps of a layer into the residual stream; and these hooks:

    encode_positions(x, positions, hook): embeddings x (R, S, D) with positions (R, S) or (1, S)
    added, and the rotary pair (cos, sin) or None.
    qkv(block, x, rotary, change): queries (R, S, H, K), and keys and values (R, S, 2, H', K).
    keys_values(block, x, rotary, change), queries(block, x, rotary, change): either of them, where
    the other is not read.
    attention_output(block, out, change), mlp(block, x, change): what is added to the residual
    stream, (R, S, D).
    weight_of(block, target): the weight (I, O) of a linear map, a key of samplers.TARGETS.

    change: from the pass's hook, see samplers.base.PassHook.linear; None: no linear map is changed.
    dropout_sites: after which of ATTENTION and MLP the dropout hook acts. has_embedding_dropout:
    whether it can act after the embedding. It can always act on the attention weights.

    recomputes_blocks: gradient checkpointing (Chen et al., arXiv 1604.06174) in ``read_together``:
    the backward pass computes each block again, only its input and the prompts' keys and values are
    kept until then.

    Shapes as in src/models/kv_cache.py.
    """

    recomputes_blocks = False
    dropout_sites = (ATTENTION, MLP)
    has_embedding_dropout = True

    @property
    def _heads_a_key(self):
        """Query heads of a key-value head, H / H'."""
        return self.config.num_attention_heads // cache_shape(self.config)[1]

    def embed(self, ids):
        """Token ids to embeddings (..., D), without positions."""
        return self.get_input_embeddings()(ids)

    def new_cache(self, rows, capacity):
        """An empty SuffixCache for so many rows and positions."""
        layers, heads, width = cache_shape(self.config)
        weight = self.get_input_embeddings().weight
        return SuffixCache.allocate(weight, layers, capacity, rows, heads, width)

    def start_prompts(self, x):
        """The PromptStart of prompts x (G, L, D), embedded and padded on the right."""
        block = self.blocks[0]
        x, rotary = self.encode_positions(x, _positions_of(x), NO_HOOK)
        q, kv = self.qkv(block, x, rotary, None)
        out = self.attention_output(block, attend_in_prompt(q, *_heads_first(kv)), None)
        if ATTENTION not in self.dropout_sites:
            x = x + out
            out = self.mlp(block, x, None)  # (G, L, D)
        return PromptStart(x, out, kv, rotary)

    def prefill(self, x, prompt_lengths, hook=NO_HOOK):
        """Reads the prompts.

        x (G, L, D): token embeddings, padded on the right to L; or the PromptStart of the prompts,
        in a model of several blocks. prompt_lengths (G,): true lengths. hook: a PassHook of
        src.sampling.samplers. Returns the final hidden state, after the last norm, of each prompt's
        last token, (G, D), and the PrefixCache.
        """
        hook, layers = hook.for_layers(len(self.blocks)), []
        if isinstance(x, PromptStart):
            layers.append(_heads_first(x.kv))
            x, rotary = self._finish_first_block(x, hook), x.rotary
        else:
            x, rotary = self.encode_positions(x, _positions_of(x), hook)
        for layer in range(len(layers), len(self.blocks) - 1):
            x, kv = self._block_of_prompts(layer, x, rotary, hook)
            layers.append(kv)
        change = hook.linear(len(self.blocks) - 1)
        layers.append(_heads_first(self.keys_values(self.blocks[-1], x, rotary, change)))
        prefix = PrefixCache.of(prompt_lengths, layers)
        return self._read_last_block(x, rotary, prefix, hook), prefix

    def read_prompts(self, ids, prompt_lengths):
        """The PrefixCache of prompts ids (G, L), padded on the right, of prompt_lengths (G,)."""
        return self.prefill(self.embed(ids), prompt_lengths)[1]

    def _block_of_prompts(self, layer, x, rotary, hook):
        """A block: the residual stream (G, L, D) after it, and its keys and values."""
        q, kv = self.qkv(self.blocks[layer], x, rotary, hook.linear(layer))
        kv = _heads_first(kv)  # q (G, L, H, K)
        out = attend_in_prompt(q, *kv, hook.attention(layer))
        return self._finish_block(self.blocks[layer], layer, x, out, hook), kv

    def _finish_first_block(self, start, hook):
        """The residual stream (G, L, D) after the first block."""
        if ATTENTION not in self.dropout_sites:
            return hook.add(start.x, start.out, 0, MLP)
        x = hook.add(start.x, start.out, 0, ATTENTION)
        return hook.add(x, self.mlp(self.blocks[0], x, hook.linear(0)), 0, MLP)

    def _read_last_block(self, x, rotary, prefix, hook):
        """The final hidden states (G, D) of the prompts' last tokens, from all tokens' x (G, L, D).

        The last block's keys and values are in ``prefix``; nothing else is computed of the others.
        """
        layer, block = len(self.blocks) - 1, self.blocks[-1]
        groups = torch.arange(len(x), device=x.device)
        last = (groups[:, None], (prefix.lengths - 1)[:, None])
        x, hook = x[last], hook.at(last)  # (G, 1, D)
        if rotary is not None:
            rotary = tuple(part.expand(len(groups), -1, -1)[last] for part in rotary)
        q = self.queries(block, x, rotary, hook.linear(layer))  # (G, 1, H, K)
        out = attend_from_last(q, *prefix.layers[-1], prefix.bias, hook.attention(layer))
        return self.final_norm(self._finish_block(block, layer, x, out, hook)[:, 0])

    def extend(self, x, positions, prefix, suffix, hook=NO_HOOK, hidden_states=None):
        """Reads further positions of every row and appends them to ``suffix``.

        x (R, S, D): thoughts or token embeddings. positions (R, S). prefix: a PrefixCache. suffix:
        a SuffixCache, DynamicSuffixCache or SinglePass. Returns the final hidden states (R, S, D).
        hidden_states: a list that receives, as transformers' output_hidden_states, the input of the
        first block and the output of every block, (R, S, D), the last one after the final norm.
        """
        window, mask = suffix.open(x.shape[1])
        return self.step(x, positions, prefix, window, mask, hook, hidden_states)

    def step(self, x, positions, prefix, window, mask, hook, hidden_states=None):
        """``extend`` with the window and ``mask`` that the suffix cache has opened for it.

        Its shapes depend on no value, and nothing in it waits for the device.
        """
        hook, mask = hook.for_layers(len(self.blocks)), by_query(mask, self._heads_a_key)
        x, rotary = self.encode_positions(x, positions, hook)
        for layer in range(len(self.blocks)):
            if hidden_states is not None:
                hidden_states.append(x)
            x = self._block_of_rows(layer, x, rotary, prefix, window, mask, hook)
        x = self.final_norm(x)
        if hidden_states is not None:
            hidden_states.append(x)
        return x

    def _block_of_rows(self, layer, x, rotary, prefix, window, mask, hook):
        """A block: the residual stream (R, S, D) after it."""
        q, kv = self.qkv(self.blocks[layer], x, rotary, hook.linear(layer))  # q (R, S, H, K)
        k, v = window.append(layer, kv)  # (R, H', T, K) each
        out = attend(q, k, v, mask, prefix, layer, hook.attention(layer))  # (R, S, H * K)
        return self._finish_block(self.blocks[layer], layer, x, out, hook)

    def read_together(self, prompts, prompt_lengths, x, positions):
        """The final hidden states (R, S, D) of x (R, S, D) at positions (R, S), after prompts.

        prompts (G, L, D) and prompt_lengths (G,): as of ``prefill``. It computes what ``prefill``
        and ``extend`` do, but prompts and rows go through each block together, to save memory: no
        keys and values outlive their block, and a backward pass adds up the two gradients of a
        block's weights before it goes on to the next block.
        """
        prompts, of_prompts = self.encode_positions(prompts, _positions_of(prompts), NO_HOOK)
        x, rotary = self.encode_positions(x, positions, NO_HOOK)
        window, mask = SinglePass(x.device).open(x.shape[1])
        mask = by_query(mask, self._heads_a_key)
        prefix, last = None, len(self.blocks) - 1
        for layer in range(len(self.blocks)):
            if layer < last:
                inputs = (layer, prompts, of_prompts, NO_HOOK)
                prompts, kv = self._run(self._block_of_prompts, *inputs)
            else:
                kv = self.keys_values(self.blocks[last], prompts, of_prompts, None)
                kv = _heads_first(kv)
            prefix = prefix or PrefixCache.of(prompt_lengths, [kv])  # its bias serves all layers
            inputs = (layer, x, rotary, replace(prefix, layers={layer: kv}), window, mask)
            x = self._run(self._block_of_rows, *inputs, NO_HOOK)
        return self.final_norm(x)

    def _run(self, block, *inputs):
        if self.recomputes_blocks and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def _finish_block(self, block, layer, x, out, hook):
        """The residual stream (R, S, D) after a block, from its attention ``out``."""
        change = hook.linear(layer)
        at_attention = hook if ATTENTION in self.dropout_sites else NO_HOOK
        x = at_attention.add(x, self.attention_output(block, out, change), layer, ATTENTION)
        return hook.add(x, self.mlp(block, x, change), layer, MLP)


def changed(out, target, x, change):
    """The output (R, S, O) of the linear map ``target`` at x (R, S, I), with its change."""
    more = None if change is None else change(target, x)
    return out if more is None else out + more


def _positions_of(x):
    return torch.arange(x.shape[1], device=x.device)[None]  # (1, L)


def _heads_first(kv):
    """Keys and values (G, H', L, K) each of kv (G, L, 2, H', K)."""
    return kv.permute(2, 0, 3, 1, 4).unbind()
