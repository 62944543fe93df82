"""LLaMA's forward pass over prompts and rows (src/models/caches.py), with the weights of a HF LlamaModel.

Shapes as in src/models/caches.py.
"""

import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from src.models.caches import FixedCache, PromptCache, attend, heads
from src.sampling.samplers import KEEP_ALL, MLP


class LlamaReader:
    """Mixin of the models that hold a LlamaModel, ``self.model``; the counterpart of GPT2Reader.

    It drops after each MLP only, as the release does.
    """

    @property
    def blocks(self):
        """The layers of the body, and by ``outputs_of`` a layer's two linear maps into the residual stream."""
        return self.model.layers

    @staticmethod
    def outputs_of(block):
        return block.self_attn.o_proj, block.mlp.down_proj

    def embed(self, ids):
        """Token ids to embeddings (..., D)."""
        return self.model.embed_tokens(ids)

    def new_cache(self, rows, capacity):
        """An empty cache for the own positions of so many rows."""
        config, like = self.config, self.model.embed_tokens.weight
        sizes = (rows, config.num_key_value_heads, capacity, config.head_dim)
        return FixedCache(config.num_hidden_layers, *sizes, like)

    def prefill(self, x, lengths, drop=KEEP_ALL):
        """Reads the prompts: see GPT2Reader.prefill."""
        body, rows = self.model, torch.arange(x.shape[0], device=x.device)
        turn = body.rotary_emb(x, torch.arange(x.shape[1], device=x.device)[None])  # cos, sin
        cache = PromptCache(PromptCache.padding_of(lengths, x.shape[1]))
        for layer, block in enumerate(body.layers):
            q, k, v = _project(block, x, turn)  # (G, H, L, K), (G, H', L, K) twice
            cache.layers.append((k, v))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            out = out.transpose(1, 2).flatten(2)  # (G, L, H * K)
            if layer == len(body.layers) - 1:  # only the last token's state is asked for
                last = (rows[:, None], (lengths - 1)[:, None])
                x, out, drop = x[last], out[last], drop.at(last)
            x = x + block.self_attn.o_proj(out)
            x = x + drop(block.mlp(block.post_attention_layernorm(x)), layer, MLP)
        return body.norm(x[:, 0]), cache

    def extend(self, x, positions, prompt, own, drop=KEEP_ALL, layers=None):
        """Reads further positions of every row and adds them to its own cache: see GPT2Reader.extend."""
        body = self.model
        turn = body.rotary_emb(x, positions)  # cos, sin
        for layer, block in enumerate(body.layers):
            q, k, v = _project(block, x, turn)  # (R, H, S, K), (R, H', S, K) twice
            k, v = own.append(layer, k, v)  # (R, H', T, K)
            out = attend(q, k, v, own.hidden, prompt.layers[layer], prompt.padding)
            x = x + block.self_attn.o_proj(out)
            x = x + drop(block.mlp(block.post_attention_layernorm(x)), layer, MLP)
            if layers is not None:
                layers.append(x if layer < len(body.layers) - 1 else body.norm(x))
        own.length += x.shape[1]
        return body.norm(x)


def _project(block, x, turn):
    attention, x = block.self_attn, block.input_layernorm(x)
    parts = (attention.q_proj(x), attention.k_proj(x), attention.v_proj(x))
    q, k, v = (heads(part, attention.head_dim) for part in parts)
    return *apply_rotary_pos_emb(q, k, *turn), v
