"""LLaMA: what is its own in the forward pass (src/models/decoder.py)."""

from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from src.models.decoder import Decoder
from src.models.kv_cache import split_heads
from src.sampling.samplers import MLP


class LlamaDecoder(Decoder):
    """Mixin of the models that hold a LlamaModel, ``self.model``; hooks: see Decoder."""

    # As in the release.
    dropout_sites = (MLP,)
    has_embedding_dropout = False

    @property
    def blocks(self):
        return self.model.layers

    @property
    def final_norm(self):
        return self.model.norm

    @staticmethod
    def residual_outputs(block):
        return block.self_attn.o_proj, block.mlp.down_proj

    def encode_positions(self, x, positions, dropout):
        if dropout.with_embedding:
            raise ValueError("dropout_embedding: a LLaMA has no dropout after the embedding")
        return x, self.model.rotary_emb(x, positions)

    def qkv(self, block, x, rotary):
        attention, x = block.self_attn, block.input_layernorm(x)
        parts = (attention.q_proj(x), attention.k_proj(x), attention.v_proj(x))
        q, k, v = (split_heads(part, attention.head_dim) for part in parts)
        return *apply_rotary_pos_emb(q, k, *rotary), v

    def attention_output(self, block, out):
        return block.self_attn.o_proj(out)

    def mlp(self, block, x):
        return block.mlp(block.post_attention_layernorm(x))


class LlamaLanguageModel(LlamaDecoder, LlamaForCausalLM):
    """The architecture of a backbone. Layout: ``model.*``, ``lm_head.weight``."""
