"""What makes trajectories differ: Monte Carlo dropout or additive Gaussian noise.

Steps count positions from the prompt's last token, which is step 0 and yields thought 1. Thought t
is read at step t; earlier prompt tokens have negative steps.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch

from src.sampling import rng

ATTENTION, MLP = range(2)  # dropout sites of a block: after attention, after the MLP
PROMPT, SUFFIX = range(2)  # where an attention weight's key is: in the prompt, or after it
SAMPLERS = ("dropout", "noise")
MASKS = ("step", "trajectory")
# Fields of Sampling: dropouts that GPT-2 is trained with, and the paper's evaluation does without.
EXTRA_DROPOUTS = ("dropout_embedding", "dropout_attention")
_NOISE_SITE = -1
_EMBEDDING_SITE = -2
_WEIGHTS_SITE = -3
_MASK_NUMBERS = 1 << 22  # factors of dropout that are made at once: 16 MiB in float32
_WHOLE_TRAJECTORY = -(1 << 40)  # in place of the step where one mask serves all of them


@dataclass(frozen=True)
class Sampling:
    """How latent thoughts are sampled (You et al., arXiv 2510.07745, section 3).

    method: "dropout", "noise" or None (deterministic). dropout_p: rate after attention and after
    the MLP of each block. noise_std: sigma of the noise on every thought that is fed back.
    dropout_prompt: every sample reads the prompt under dropout masks of its own (the paper's
    evaluation); if false, all samples share one reading without dropout. dropout_answer: dropout
    also in the last thought's forward pass and in the answer. dropout_embedding: dropout also after
    the embedding (the paper's annotation). dropout_mask: a fresh mask at every position ("step") or
    one for the whole trajectory ("trajectory", Dropout-GRPO, arXiv 2606.10184). dropout_attention:
    dropout also of the attention weights, after their softmax (GPT-2's attn_pdrop).
    Raises ValueError on impossible values.
    """

    method: str | None = None
    dropout_p: float = 0.0
    noise_std: float = 0.0
    dropout_prompt: bool = True
    dropout_answer: bool = False
    dropout_embedding: bool = False
    dropout_mask: str = "step"
    dropout_attention: bool = False

    def __post_init__(self):
        if self.method not in (None, *SAMPLERS):
            names = ", ".join(SAMPLERS)
            raise ValueError(f"sampling_by must be one of {names}, not {self.method!r}")
        if not 0 <= self.dropout_p < 1:
            raise ValueError(f"dropout_p must be in [0, 1), not {self.dropout_p}")
        if not 0 <= self.noise_std < float("inf"):
            raise ValueError(f"noise_std must be a number >= 0, not {self.noise_std}")
        if self.dropout_mask not in MASKS:
            raise ValueError(f"dropout_mask must be one of {', '.join(MASKS)}")

    @property
    def uses_dropout(self):
        return self.method == "dropout" and self.dropout_p > 0

    @property
    def resample_prompt(self):
        """Whether every sample reads the prompt under dropout masks of its own."""
        return self.uses_dropout and self.dropout_prompt


DETERMINISTIC = Sampling()


class NoDropout:
    """The dropout hook that drops nothing.

    The decoder calls ``add`` with the residual stream x (R, S, D), the output ``out`` of a block's
    attention or MLP, the layer, and the site in the block. ``at`` gives the hook for chosen
    positions only, an index pair into (R, S).
    """

    with_embedding = with_attention = False

    def for_layers(self, count):
        """The hook of one forward pass through so many layers."""
        return self

    def add(self, x, out, layer, site):
        """x + out, after dropout of ``out``."""
        return x + out

    def embedding(self, x):
        """Dropout of the sum of token (or thought) and position embedding."""
        return x

    def attention(self, layer):
        """A function that drops attention weights of a layer, or None: they are not dropped.

        See DropoutMasks.drop_weights.
        """
        return None

    def at(self, index):
        return self


NO_DROPOUT = NoDropout()


@dataclass
class DropoutMasks:
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

    def add(self, x, out, layer, site):
        if torch.compiler.is_compiling():  # made where they are used, in batches of all sizes
            return torch.addcmul(x, out, self._factors_at(2 * layer + site, *_like(out)))
        if self._factors is None or not 0 <= layer - self._first < len(self._factors):
            self._make_factors(layer, *_like(out))
        return torch.addcmul(x, out, self._factors[layer - self._first, site])

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


def dropout_hook(sampling, rng_keys, steps, active=True):
    """The hook for rows of rng_keys (R,) at steps (R, S), where dropout is ``active``.

    Monte Carlo dropout: You et al., arXiv 2510.07745, section 3.
    """
    if not (active and sampling.uses_dropout):
        return NO_DROPOUT
    if sampling.dropout_mask == "trajectory":
        steps = torch.full_like(steps[:, :1], _WHOLE_TRAJECTORY)
    step_keys = rng.fold(rng_keys[:, None], steps)  # (R, S) or (R, 1)
    sites = (sampling.dropout_embedding, sampling.dropout_attention)
    return DropoutMasks(step_keys, sampling.dropout_p, *sites)


def add_noise(sampling, thought, rng_keys, step):
    """h_t + eps, eps ~ N(0, sigma^2 I), for thoughts (R, D) at ``step`` and rng_keys (R,).

    Additive Gaussian noise: You et al., arXiv 2510.07745, section 3.
    """
    if sampling.method != "noise" or sampling.noise_std == 0:
        return thought
    noise = rng.normal(rng.fold(rng_keys, step), _NOISE_SITE, thought.shape[-1])  # (R, D)
    return thought + (sampling.noise_std * noise).to(thought.dtype)
