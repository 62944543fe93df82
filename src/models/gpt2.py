"""GPT-2: what is its own in the forward pass (src/models/decoder.py)."""

import torch
import torch.nn.functional as F
from transformers import GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from src.models.decoder import Decoder, changed

_QKV = ("attn_q", "attn_k", "attn_v")  # by their columns in c_attn


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

    def encode_positions(self, x, positions, hook):
        return hook.embedding(x + self.transformer.wpe(positions).to(x.dtype)), None

    @staticmethod
    def weight_of(block, target):
        if target in _QKV:
            return block.attn.c_attn.weight.chunk(3, dim=1)[_QKV.index(target)]
        maps = {"attn_o": block.attn.c_proj, "mlp_up": block.mlp.c_fc, "mlp_down": block.mlp.c_proj}
        return maps[target].weight

    def qkv(self, block, x, rotary, change):
        x = block.ln_1(x)
        qkv = block.attn.c_attn(x).unflatten(-1, (3, -1, block.attn.head_dim))
        _change_parts(qkv, _QKV, x, change)
        return qkv[:, :, 0], qkv[:, :, 1:]

    def keys_values(self, block, x, rotary, change):
        if not isinstance(block.attn.c_attn, Conv1D):  # with adapters it can't be taken apart
            return self.qkv(block, x, rotary, change)[1]
        return _parts_of_qkv(block, x, 1, 3, change)

    def queries(self, block, x, rotary, change):
        if not isinstance(block.attn.c_attn, Conv1D):
            return self.qkv(block, x, rotary, change)[0]
        return _parts_of_qkv(block, x, 0, 1, change)[:, :, 0]

    def attention_output(self, block, out, change):
        return changed(block.attn.c_proj(out), "attn_o", out, change)

    def mlp(self, block, x, change):
        x = block.ln_2(x)
        hidden = changed(block.mlp.c_fc(x), "mlp_up", x, change)  # (R, S, 4 D)
        if self.config.activation_function == "gelu_new":
            hidden = F.gelu(hidden, approximate="tanh")  # the same function in one fused kernel
        else:
            hidden = block.mlp.act(hidden)
        return changed(block.mlp.c_proj(hidden), "mlp_down", hidden, change)


def _parts_of_qkv(block, x, first, last, change):
    """Parts first .. last - 1 of queries, keys and values of x (G, L, D): (G, L, parts, H, K)."""
    width, c_attn = x.shape[-1], block.attn.c_attn
    columns = slice(first * width, last * width)
    x = block.ln_1(x)
    out = torch.addmm(c_attn.bias[columns], x.flatten(0, 1), c_attn.weight[:, columns])
    parts = out.view(*x.shape[:2], last - first, -1, block.attn.head_dim)
    _change_parts(parts, _QKV[first:last], x, change)
    return parts


def _change_parts(parts, targets, x, change):
    """Adds to parts (R, S, P, H, K), one for each of ``targets``, their changes at x (R, S, D)."""
    for number, target in enumerate(targets if change is not None else ()):
        more = change(target, x)
        if more is not None:
            parts[:, :, number].add_(more.unflatten(-1, parts.shape[3:]))


class GPT2LanguageModel(GPT2Decoder, GPT2LMHeadModel):
    """The architecture of a backbone. Layout: ``transformer.*``, ``lm_head.weight``."""
