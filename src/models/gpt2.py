"""GPT-2: what is its own in the forward pass (src/models/decoder.py)."""

import torch.nn.functional as F
from transformers import GPT2LMHeadModel

from src.models.decoder import Decoder
from src.models.kv_cache import split_heads


class GPT2Decoder(Decoder):
    """Mixin of the models that hold a GPT2Model, ``self.transformer``; hooks: see Decoder."""

    def __init__(self, config):
        """Raises ValueError for the rare GPT-2 variants that this forward pass does not compute."""
        if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights:
            raise ValueError("attention scaled in GPT-2's uncommon ways is not supported")
        super().__init__(config)

    @property
    def blocks(self):
        return self.transformer.h

    @property
    def final_norm(self):
        return self.transformer.ln_f

    @staticmethod
    def residual_outputs(block):
        return block.attn.c_proj, block.mlp.c_proj

    def encode_positions(self, x, positions, dropout):
        return dropout.embedding(x + self.transformer.wpe(positions).to(x.dtype)), None

    def qkv(self, block, x, rotary):
        qkv = block.attn.c_attn(block.ln_1(x)).split(x.shape[-1], dim=-1)
        return (split_heads(part, block.attn.head_dim) for part in qkv)

    def attention_output(self, block, out):
        return block.attn.c_proj(out)

    def mlp(self, block, x):
        hidden = block.mlp.c_fc(block.ln_2(x))  # (R, S, 4 D)
        if self.config.activation_function == "gelu_new":
            hidden = F.gelu(hidden, approximate="tanh")  # the same function in one fused kernel
        else:
            hidden = block.mlp.act(hidden)
        return block.mlp.c_proj(hidden)


class GPT2LanguageModel(GPT2Decoder, GPT2LMHeadModel):
    """The architecture of a backbone. Layout: ``transformer.*``, ``lm_head.weight``."""
