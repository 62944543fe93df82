"""Monte Carlo dropout (You et al., arXiv 2510.07745, section 3)."""

from dataclasses import dataclass, replace
from functools import partial

import torch

from src.sampling import rng
from src.sampling.samplers.base import NO_HOOK, PassHook, Sampler

MASKS = ("step", "trajectory")
# Dropouts that GPT-2 is trained with, and the paper's evaluation does without.
EXTRA_DROPOUTS = ("dropout_embedding", "dropout_attention")
_EMBEDDING_SITE = -2
_WEIGHTS_SITE = -3
_MASK_NUMBERS = 1 << 22  # factors of dropout that are made at once: 16 MiB in float32
_WHOLE_TRAJECTORY = -(1 << 40)  # in place of the step where one mask serves all of them


@dataclass(frozen=True)
class Dropout(Sampler):
    """Dropout in the forward passes of prompt and thoughts, a mask for each trajectory and step.

    dropout_p: rate after attention and after the MLP of each block. dropout_prompt: every sample
    reads the prompt under masks of its own (the paper's evaluation); if false, all samples share
    one reading without dropout. dropout_answer: dropout also in the last thought's forward pass and
    in the answer. dropout_embedding: dropout also after the embedding (the paper's annotation).
    dropout_mask: a fresh mask at every position ("step") or one for the whole trajectory
    ("trajectory", Dropout-GRPO, arXiv 2606.10184). dropout_attention: dropout also of the attention
    weights, after their softmax (GPT-2's attn_pdrop).
    """

    dropout_p: float = 0.0
    dropout_prompt: bool = True
    dropout_answer: bool = False
    dropout_embedding: bool = False
    dropout_mask: str = "step"
    dropout_attention: bool = False

    strength = "dropout_p"
    varies_passes = True

    def __post_init__(self):
        if not 0 <= self.dropout_p < 1:
            raise ValueError(f"dropout_p must be in [0, 1), not {self.dropout_p}")
        if self.dropout_mask not in MASKS:
            raise ValueError(f"dropout_mask must be one of {', '.join(MASKS)}")

    @property
    def own_prompts(self):
        return self.dropout_prompt

    @property
    def changes_prompt_start(self):
        return self.dropout_prompt and (self.dropout_embedding or self.dropout_attention)

    def pass_hook(self, model, rng_keys, steps):
        return dropout_hook(self, rng_keys, steps)

    def answer_hook(self, model, rng_keys, steps, num_thoughts=None):
        return dropout_hook(self, rng_keys, steps) if self.dropout_answer else NO_HOOK


def dropout_hook(settings, rng_keys, steps):
    """The hook for rows of rng_keys (R,) at steps (R, S). settings: a Dropout or a Sampling."""
    if settings.dropout_p == 0:
        return NO_HOOK
    if settings.dropout_mask == "trajectory":
        steps = torch.full_like(steps[:, :1], _WHOLE_TRAJECTORY)
    step_keys = rng.fold(rng_keys[:, None], steps)  # (R, S) or (R, 1)
    sites = (settings.dropout_embedding, settings.dropout_attention)
    return DropoutMasks(step_keys, settings.dropout_p, *sites)


@dataclass
class DropoutMasks(PassHook):
    """The hook that drops. rng_keys: (R, S), or (R, 1) when one mask serves all positions.

    Masks are made for several layers at once, of up to ``_MASK_NUMBERS``: a step then starts few
    kernels, and the masks of long prompts stay in the processor's cache.
    """

    rng_keys: torch.Tensor
    p: float
    with_embedding: bool = False
    with_attention: bool = False
    num_layers: int = 1
    _factors: torch.Tensor | None = None  # (layers, 2, R, S, D) of the layers from _first on
    _first: int = 0

    def for_layers(self, count):
        return replace(self, num_layers=count)

    def output(self, out, layer, site):
        return out * self._factors_of(out, layer, site)

    def add(self, x, out, layer, site):
        return torch.addcmul(x, out, self._factors_of(out, layer, site))

    def _factors_of(self, out, layer, site):
        if torch.compiler.is_compiling():  # made where they are used, in batches of all sizes
            return self._factors_at(2 * layer + site, *_like(out))
        if self._factors is None or not 0 <= layer - self._first < len(self._factors):
            self._make_factors(layer, *_like(out))
        return self._factors[layer - self._first, site]

    def _make_factors(self, first, width, dtype):
        at_once = max(1, _MASK_NUMBERS // (2 * self.rng_keys.numel() * width))
        last = min(first + at_once, self.num_layers)
        sites = torch.arange(2 * first, 2 * last, device=self.rng_keys.device)
        factors = self._factors_at(sites[:, None, None], width, dtype)
        self._factors, self._first = factors.unflatten(0, (-1, 2)), first

    def _factors_at(self, site, width, dtype):
        """What outputs are multiplied by: 0, or 1 / (1 - p)."""
        kept = ~rng.dropped(self.rng_keys, site, width, self.p)
        return (kept * (1 / (1 - self.p))).to(dtype)

    def embedding(self, x):
        if not self.with_embedding:
            return x
        return x * self._factors_at(_EMBEDDING_SITE, x.shape[-1], x.dtype)

    def attention(self, layer):
        return partial(self.drop_weights, layer) if self.with_attention else None

    def drop_weights(self, layer, weights, part):
        """Drops attention weights (R, H, S, T) of all heads, keys in PROMPT or SUFFIX (``part``).

        A weight's random number is keyed by query position, head, layer, part, and the key's number
        in its part, 0 .. T - 1. Never in place: softmax needs its output for the gradient.
        """
        heads = torch.arange(weights.shape[1], device=weights.device)[:, None]  # (H, 1)
        keys = rng.fold(rng.fold(self.rng_keys, _WEIGHTS_SITE)[:, None], heads)  # (R, H, S)
        mask = rng.dropped(keys, 2 * layer + part, weights.shape[-1], self.p)  # (R, H, S, T)
        return weights.masked_fill(mask, 0).mul_(1 / (1 - self.p))

    def at(self, index):
        one_mask = self.rng_keys.shape[1] == 1
        return self if one_mask else replace(self, rng_keys=self.rng_keys[index], _factors=None)


def _like(out):
    return out.shape[-1], out.dtype
