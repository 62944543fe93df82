"""LLaMA: what is its own in the forward pass (src/models/decoder.py)."""

import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import rotate_half

from src.models.decoder import Decoder
from src.sampling.samplers import MLP


class LlamaDecoder(Decoder):
    """Mixin of the models that hold a LlamaModel, ``self.model``; hooks: see Decoder."""

    # As in the release.
    dropout_sites = (MLP,)
    has_embedding_dropout = False

    @property
    def blocks(self):
        return self.model.layers

    def final_norm(self, x):
        return _normalized(x, self.model.norm)

    @staticmethod
    def residual_outputs(block):
        return block.self_attn.o_proj, block.mlp.down_proj

    def encode_positions(self, x, positions, dropout):
        if dropout.with_embedding:
            raise ValueError("dropout_embedding: a LLaMA has no dropout after the embedding")
        return x, self.model.rotary_emb(x, positions)

    def qkv(self, block, x, rotary):
        x = _normalized(x, block.input_layernorm)
        return self._queries(block, x, rotary), self._keys_values(block, x, rotary)

    def keys_values(self, block, x, rotary):
        return self._keys_values(block, _normalized(x, block.input_layernorm), rotary)

    def queries(self, block, x, rotary):
        return self._queries(block, _normalized(x, block.input_layernorm), rotary)

    def _queries(self, block, x, rotary):
        q = block.self_attn.q_proj(x).unflatten(-1, (-1, block.self_attn.head_dim))
        return _rotate(q, rotary)  # (R, S, H, K)

    def _keys_values(self, block, x, rotary):
        attention = block.self_attn
        k, v = (
            projection(x).unflatten(-1, (-1, attention.head_dim))
            for projection in (attention.k_proj, attention.v_proj)
        )
        return torch.stack((_rotate(k, rotary), v), dim=2)  # (R, S, 2, H', K)

    def attention_output(self, block, out):
        return block.self_attn.o_proj(out)

    def mlp(self, block, x):
        return block.mlp(_normalized(x, block.post_attention_layernorm))


def _normalized(x, norm):
    """The RMSNorm of x (..., D), rounded once; transformers' rounds before its weight, too."""
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotate(x, rotary):
    """Rotary position embedding (Su et al., arXiv 2104.09864) of x (R, S, H, K)."""
    cos, sin = (part[:, :, None] for part in rotary)  # (R or 1, S, 1, K)
    return x * cos + rotate_half(x) * sin


class LlamaLanguageModel(LlamaDecoder, LlamaForCausalLM):
    """The architecture of a backbone. Layout: ``model.*``, ``lm_head.weight``."""
