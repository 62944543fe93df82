"""LLaMA: what is its own in the forward pass (src/models/decoder.py)."""

import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import rotate_half

from src.models.decoder import Decoder, changed
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

    def encode_positions(self, x, positions, hook):
        if hook.with_embedding:
            raise ValueError("dropout_embedding: a LLaMA has no dropout after the embedding")
        return x, self.model.rotary_emb(x, positions)

    @staticmethod
    def weight_of(block, target):
        """mlp_up is ``up_proj``; the gate's ``gate_proj`` is no target and never changed."""
        return _projection(block, target).weight.T

    def qkv(self, block, x, rotary, change):
        x = _normalized(x, block.input_layernorm)
        return self._queries(block, x, rotary, change), self._keys_values(block, x, rotary, change)

    def keys_values(self, block, x, rotary, change):
        return self._keys_values(block, _normalized(x, block.input_layernorm), rotary, change)

    def queries(self, block, x, rotary, change):
        return self._queries(block, _normalized(x, block.input_layernorm), rotary, change)

    def _queries(self, block, x, rotary, change):
        q = _project(block, "attn_q", x, change).unflatten(-1, (-1, block.self_attn.head_dim))
        return _rotate(q, rotary)  # (R, S, H, K)

    def _keys_values(self, block, x, rotary, change):
        k, v = (
            _project(block, target, x, change).unflatten(-1, (-1, block.self_attn.head_dim))
            for target in ("attn_k", "attn_v")
        )
        return torch.stack((_rotate(k, rotary), v), dim=2)  # (R, S, 2, H', K)

    def attention_output(self, block, out, change):
        return _project(block, "attn_o", out, change)

    def mlp(self, block, x, change):
        x = _normalized(x, block.post_attention_layernorm)
        if change is None:
            return block.mlp(x)
        gate = block.mlp.act_fn(block.mlp.gate_proj(x))
        return _project(block, "mlp_down", gate * _project(block, "mlp_up", x, change), change)


def _projection(block, target):
    part, name = target.split("_")
    module = block.self_attn if part == "attn" else block.mlp
    return getattr(module, f"{name}_proj")


def _project(block, target, x, change):
    return changed(_projection(block, target)(x), target, x, change)


def _normalized(x, norm):
    """The RMSNorm of x (..., D), rounded once; transformers' rounds before its weight, too."""
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotate(x, rotary):
    """Rotary position embedding (Su et al., arXiv 2104.09864) of x (R, S, H, K)."""
    cos, sin = (part[:, :, None] for part in rotary)  # (R or 1, S, 1, K)
    return x * cos + rotate_half(x) * sin


class LlamaLanguageModel(LlamaDecoder, LlamaForCausalLM):
    """The architecture of a backbone. Layout: ``model.*``, ``lm_head.weight``."""
