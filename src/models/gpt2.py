"""GPT-2: what is its own in the forward pass (src/models/decoder.py)."""

import torch
import torch.nn.functional as F
from transformers import GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from src.models.decoder import Decoder


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
        qkv = block.attn.c_attn(block.ln_1(x)).unflatten(-1, (3, -1, block.attn.head_dim))
        return qkv[:, :, 0], qkv[:, :, 1:]

    def keys_values(self, block, x, rotary):
        if not isinstance(block.attn.c_attn, Conv1D):  # with adapters it can't be taken apart
            return self.qkv(block, x, rotary)[1]
        width = x.shape[-1]
        return _part_of_qkv(block, x, width, 3 * width).unflatten(-1, (2, -1, block.attn.head_dim))

    def queries(self, block, x, rotary):
        if not isinstance(block.attn.c_attn, Conv1D):
            return self.qkv(block, x, rotary)[0]
        return _part_of_qkv(block, x, 0, x.shape[-1]).unflatten(-1, (-1, block.attn.head_dim))

    def attention_output(self, block, out):
        return block.attn.c_proj(out)

    def mlp(self, block, x):
        hidden = block.mlp.c_fc(block.ln_2(x))  # (R, S, 4 D)
        if self.config.activation_function == "gelu_new":
            hidden = F.gelu(hidden, approximate="tanh")  # the same function in one fused kernel
        else:
            hidden = block.mlp.act(hidden)
        return block.mlp.c_proj(hidden)


def _part_of_qkv(block, x, first, last):
    """Columns first .. last of what c_attn makes of x (G, L, D)."""
    weight, bias = block.attn.c_attn.weight[:, first:last], block.attn.c_attn.bias[first:last]
    x = block.ln_1(x)
    return torch.addmm(bias, x.flatten(0, 1), weight).unflatten(0, x.shape[:2])


class GPT2LanguageModel(GPT2Decoder, GPT2LMHeadModel):
    """The architecture of a backbone. Layout: ``transformer.*``, ``lm_head.weight``."""
