"""GPT-2's forward pass over prompts and rows (src/models/caches.py), with the weights of a HF GPT2Model.

Shapes as in src/models/caches.py.
"""

import torch
import torch.nn.functional as F
from transformers.pytorch_utils import Conv1D

from src.models.caches import FixedCache, PromptCache, attend, heads
from src.sampling.samplers import ATTENTION, KEEP_ALL, MLP


class GPT2Reader:
    """Mixin of the models that hold a GPT2Model, ``self.transformer``.

    It drops, by a hook of src.sampling.samplers, after the embedding, the attention and the MLP.
    """

    def __init__(self, config):
        """Raises ValueError for the rare GPT-2 variants that this forward pass does not compute."""
        if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights:
            raise ValueError("attention scaled in GPT-2's uncommon ways is not supported")
        super().__init__(config)

    @property
    def blocks(self):
        """The layers of the body, and by ``outputs_of`` a layer's two linear maps into the residual stream."""
        return self.transformer.h

    @staticmethod
    def outputs_of(block):
        return block.attn.c_proj, block.mlp.c_proj

    def embed(self, ids):
        """Token ids to embeddings (..., D), without positions."""
        return self.transformer.wte(ids)

    def new_cache(self, rows, capacity):
        """An empty cache for the own positions of so many rows."""
        config, like = self.config, self.transformer.wte.weight
        width = config.n_embd // config.n_head
        return FixedCache(config.n_layer, rows, config.n_head, capacity, width, like)

    def prefill(self, x, lengths, drop=KEEP_ALL):
        """Reads the prompts.

        x (G, L, D) token embeddings padded on the right, lengths (G,) true lengths, drop a dropout hook.
        Returns the final hidden state (after the last layer norm) of each prompt's last token, (G, D),
        and the PromptCache.
        """
        body, act = self.transformer, _activation(self.transformer)
        rows = torch.arange(x.shape[0], device=x.device)
        x = drop.embedding(x + body.wpe.weight[: x.shape[1]].to(x.dtype))  # (G, L, D)
        cache = PromptCache(PromptCache.padding_of(lengths, x.shape[1]))
        for layer, block in enumerate(body.h):
            q, k, v = _project(block, x)  # (G, H, L, K)
            cache.layers.append((k, v))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            out = out.transpose(1, 2).reshape(x.shape)
            if layer == len(body.h) - 1:  # only the last token's state is asked for
                last = (rows[:, None], (lengths - 1)[:, None])
                x, out, drop = x[last], out[last], drop.at(last)
            x = x + drop(_linear(block.attn.c_proj, out), layer, ATTENTION)
            x = _mlp(block, x, layer, act, drop)
        return body.ln_f(x[:, 0]), cache

    def extend(self, x, positions, prompt, own, drop=KEEP_ALL, layers=None):
        """Reads further positions of every row and adds them to its own cache.

        x (R, S, D) thoughts or token embeddings, positions (R, S), prompt a PromptCache, own a
        FixedCache or GrowingCache. Returns the final hidden states (R, S, D). layers: a list that
        receives every block's output (R, S, D), the last one after the final norm.
        """
        body, act = self.transformer, _activation(self.transformer)
        x = drop.embedding(x + body.wpe(positions).to(x.dtype))  # (R, S, D)
        for layer, block in enumerate(body.h):
            q, k, v = _project(block, x)  # (R, H, S, K)
            k, v = own.append(layer, k, v)  # (R, H, T, K)
            out = attend(q, k, v, own.hidden, prompt.layers[layer], prompt.padding)
            x = x + drop(_linear(block.attn.c_proj, out), layer, ATTENTION)
            x = _mlp(block, x, layer, act, drop)
            if layers is not None:
                layers.append(x if layer < len(body.h) - 1 else body.ln_f(x))
        own.length += x.shape[1]
        return body.ln_f(x)


def _linear(conv, x):
    """HF's Conv1D, weight (in, out), in one fused call; a LoRA adapter around one as it is."""
    if type(conv) is not Conv1D:
        return conv(x)
    flat = torch.addmm(conv.bias, x.reshape(-1, x.shape[-1]), conv.weight)
    return flat.view(*x.shape[:-1], -1)


def _project(block, x):
    qkv = _linear(block.attn.c_attn, block.ln_1(x)).split(x.shape[-1], dim=-1)
    return (heads(part, block.attn.head_dim) for part in qkv)


def _activation(body):
    if body.config.activation_function == "gelu_new":
        return lambda x: F.gelu(x, approximate="tanh")  # the same function, fused
    return body.h[0].mlp.act


def _mlp(block, x, layer, act, drop):
    hidden = act(_linear(block.mlp.c_fc, block.ln_2(x)))  # (R, S, 4 D)
    return x + drop(_linear(block.mlp.c_proj, hidden), layer, MLP)
