"""Singular value perturbation (jihwan1205/Singular-Value-Perturbation, 2026).

With W = U diag(s) V^T a trajectory computes y = xW + alpha ((xU)(s g)) V^T instead of xW. It draws
g ~ N(0, I) once, independently for each layer. No weight is materialised for a row.

Shapes: R rows, S positions, I inputs and O outputs of the linear map, K = min(I, O) singular
values.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch

from src.sampling import rng
from src.sampling.samplers.base import NO_HOOK, PassHook, Sampler, check_strength, check_target

_WHOLE_TRAJECTORY = -(1 << 42)  # in place of a step
_NUMBERS = 1 << 20  # of g, which is made for several layers at once


@dataclass(frozen=True)
class SVP(Sampler):
    """Perturbed singular values of one linear map in every layer, in prompt and thoughts.

    svp_alpha: the relative size of the perturbation. svp_target: the linear map, one of TARGETS.
    svp_prompt: every sample reads the prompt under its own perturbation (as published); if false,
    all samples share one reading without. It is off from the end-of-thinking token on.
    """

    svp_alpha: float = 0.0
    svp_target: str = "attn_v"
    svp_prompt: bool = True

    strength = "svp_alpha"
    varies_passes = True

    def __post_init__(self):
        check_strength("svp_alpha", self.svp_alpha)
        check_target("svp_target", self.svp_target)

    @property
    def own_prompts(self):
        return self.svp_prompt

    @property
    def changes_prompt_start(self):
        return self.svp_prompt

    def prepare(self, model):
        """Factorises the weights anew where they, their device or their number format changed."""
        weights = [model.weight_of(block, self.svp_target) for block in model.blocks]
        stamp = [_stamp(weight) for weight in weights]
        known = model.__dict__.setdefault("singular_factors", {})  # no part of its state_dict
        if self.svp_target not in known or known[self.svp_target].stamp != stamp:
            known[self.svp_target] = SingularFactors.of(weights, stamp)

    def pass_hook(self, model, rng_keys, steps):
        factors = model.singular_factors[self.svp_target]
        keys = rng.fold(rng_keys, _WHOLE_TRAJECTORY)
        return SingularHook(keys, self.svp_alpha, self.svp_target, factors.u, factors.s_vt)

    def answer_hook(self, model, rng_keys, steps, num_thoughts=None):
        if num_thoughts is None:
            return NO_HOOK
        thinking = (steps <= num_thoughts[:, None])[..., None]  # (R, S, 1)
        return replace(self.pass_hook(model, rng_keys, steps), thinking=thinking)


def _stamp(weight):
    """What changes when a weight does: in-place changes count, those through ``.data`` do not."""
    version = None if weight.is_inference() else weight._version
    return weight.data_ptr(), version, weight.device, weight.dtype


@dataclass
class SingularFactors:
    """Of W (I, O) in each of L layers: u (L, I, K), and s_vt (L, K, O), diag(s) V^T."""

    stamp: list
    u: torch.Tensor
    s_vt: torch.Tensor

    @classmethod
    def of(cls, weights, stamp):
        pairs = [_factorise(weight) for weight in weights]
        u, s_vt = (torch.stack(part).to(weights[0]) for part in zip(*pairs, strict=True))
        return cls(stamp, u, s_vt)


@torch.no_grad()
def _factorise(weight):
    """U and diag(s) V^T of a weight, in float64 on the CPU, whatever its device.

    So machines agree on the vectors of neighbouring singular values. Their signs are arbitrary:
    here the largest component of each column of U is positive.
    """
    u, s, vt = torch.linalg.svd(weight.detach().double().cpu(), full_matrices=False)
    largest = u.gather(0, u.abs().argmax(dim=0, keepdim=True))  # (1, K)
    sign = torch.where(largest < 0, -1.0, 1.0)
    return u * sign, (sign[0] * s)[:, None] * vt


@dataclass
class SingularHook(PassHook):
    """keys (R,): of the trajectories. thinking (R, S, 1) bool: where it acts, None: everywhere."""

    keys: torch.Tensor
    alpha: float
    target: str
    u: torch.Tensor
    s_vt: torch.Tensor
    thinking: torch.Tensor | None = None
    _scales: torch.Tensor | None = None  # (layers, R, K) of the layers from _first on
    _first: int = 0

    def linear(self, layer):
        return partial(self.change, layer)

    def change(self, layer, target, x):
        """alpha ((xU)(s g)) V^T, (R, S, O), at inputs x (R, S, I)."""
        if target != self.target:
            return None
        scale = self._scale_of(layer).to(x.dtype)[:, None]  # (R, 1, K)
        if self.thinking is not None:
            scale = scale * self.thinking  # (R, S, K)
        return (x @ self.u[layer] * scale) @ self.s_vt[layer]

    def _scale_of(self, layer):
        """alpha g, (R, K), of a layer."""
        if torch.compiler.is_compiling():  # made where it is used, in batches of all sizes
            return self._draw(layer)
        if self._scales is None or not 0 <= layer - self._first < len(self._scales):
            at_once = max(1, _NUMBERS // (len(self.keys) * self.u.shape[-1]))
            last = min(layer + at_once, len(self.u))
            layers = torch.arange(layer, last, device=self.keys.device)
            self._scales, self._first = self._draw(layers[:, None]), layer
        return self._scales[layer - self._first]

    def _draw(self, layer):
        return self.alpha * rng.normal(self.keys, layer, self.u.shape[-1])

    def at(self, index):
        thinking = None if self.thinking is None else self.thinking[index]
        return replace(self, thinking=thinking)
