"""The forward pass of a decoder-only transformer over prompts and rows (src/models/kv_cache.py).

src/models/gpt2.py and src/models/llama.py hold what differs between the architectures. The weights
are those of the Hugging Face model that the mixin is combined with.
"""

import torch

from src.models.kv_cache import PrefixCache, SuffixCache, attend, attend_in_prompt
from src.sampling.memory import cache_shape
from src.sampling.samplers import ATTENTION, MLP, NO_DROPOUT


class Decoder:
    """Mixin before a Hugging Face model: reads prompts once and then the rows' suffixes.

    A subclass gives ``blocks``, its layers; ``final_norm``; ``residual_outputs(block)``, the two
    linear maps of a layer into the residual stream; and these hooks:

    encode_positions(x, positions, dropout): embeddings x (R, S, D) with positions (R, S) or (1, S)
    added, and the rotary pair (cos, sin) or None.
    qkv(block, x, rotary): queries (R, H, S, K), keys and values (R, H', S, K).
    attention_output(block, out), mlp(block, x): what is added to the residual stream, (R, S, D).
    dropout_sites: after which of ATTENTION and MLP the dropout hook acts. has_embedding_dropout:
    whether it can act after the embedding. It can always act on the attention weights.

    Shapes as in src/models/kv_cache.py.
    """

    dropout_sites = (ATTENTION, MLP)
    has_embedding_dropout = True

    def embed(self, ids):
        """Token ids to embeddings (..., D), without positions."""
        return self.get_input_embeddings()(ids)

    def new_cache(self, rows, capacity):
        """An empty SuffixCache for so many rows and positions."""
        layers, heads, width = cache_shape(self.config)
        weight = self.get_input_embeddings().weight
        return SuffixCache(weight.new_empty(layers, 2, rows, heads, capacity, width))

    def prefill(self, x, prompt_lengths, dropout=NO_DROPOUT):
        """Reads the prompts.

        x (G, L, D): token embeddings, padded on the right to L. prompt_lengths (G,): true lengths.
        dropout: a hook of src.sampling.samplers. Returns the final hidden state, after the last
        norm, of each prompt's last token, (G, D), and the PrefixCache.
        """
        positions = torch.arange(x.shape[1], device=x.device)[None]  # (1, L)
        x, rotary = self.encode_positions(x, positions, dropout)
        prefix = PrefixCache(PrefixCache.padding_of(prompt_lengths, x.shape[1]))
        last_layer = len(self.blocks) - 1
        for layer, block in enumerate(self.blocks):
            q, k, v = self.qkv(block, x, rotary)  # (G, H, L, K), (G, H', L, K) twice
            prefix.layers.append((k, v))
            out = attend_in_prompt(q, k, v, dropout.attention(layer))  # (G, L, H * K)
            if layer == last_layer:  # only the last token's state is needed
                groups = torch.arange(len(x), device=x.device)
                last = (groups[:, None], (prompt_lengths - 1)[:, None])
                x, out, dropout = x[last], out[last], dropout.at(last)
            x = self._finish_block(block, layer, x, out, dropout)
        return self.final_norm(x[:, 0]), prefix

    def extend(self, x, positions, prefix, suffix, dropout=NO_DROPOUT, hidden_states=None):
        """Reads further positions of every row and appends them to ``suffix``.

        x (R, S, D): thoughts or token embeddings. positions (R, S). prefix: a PrefixCache. suffix:
        a SuffixCache or DynamicSuffixCache. Returns the final hidden states (R, S, D).
        hidden_states: a list that receives, as transformers' output_hidden_states, the input of the
        first block and the output of every block, (R, S, D), the last one after the final norm.
        """
        new = x.shape[1]
        x, rotary = self.encode_positions(x, positions, dropout)
        if hidden_states is not None:
            hidden_states.append(x)
        for layer, block in enumerate(self.blocks):
            q, k, v = self.qkv(block, x, rotary)  # (R, H, S, K), (R, H', S, K) twice
            k, v = suffix.append(layer, k, v)  # (R, H', T, K)
            cached = (suffix.masked, prefix.layers[layer], prefix.padding)
            out = attend(q, k, v, *cached, dropout.attention(layer))  # (R, S, H * K)
            x = self._finish_block(block, layer, x, out, dropout)
            if hidden_states is not None:
                hidden_states.append(x)
        suffix.length += new
        hidden = self.final_norm(x)
        if hidden_states is not None:
            hidden_states[-1] = hidden
        return hidden

    def _finish_block(self, block, layer, x, out, dropout):
        """The residual stream (R, S, D) after a block, from its attention ``out``."""
        out = self.attention_output(block, out)
        if ATTENTION in self.dropout_sites:
            out = dropout(out, layer, ATTENTION)
        x = x + out
        return x + dropout(self.mlp(block, x), layer, MLP)
