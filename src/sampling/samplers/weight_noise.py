"""Gaussian noise on every entry of a weight: the baseline of singular value perturbation.

A trajectory computes y = x (W + sigma E) instead of xW. It draws E ~ N(0, 1) entry by entry once,
independently for each layer.

Shapes: R rows, S positions, I inputs and O outputs of the linear map.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch

from src.sampling import rng
from src.sampling.samplers.base import NO_HOOK, PassHook, Sampler, check_strength, check_target

_WHOLE_TRAJECTORY = -(1 << 43)  # in place of a step
# Entries of E that are in memory at once: few leave a CPU its caches, many keep a GPU busy.
_NUMBERS = {"cpu": 1 << 18, "cuda": 1 << 22}


@dataclass(frozen=True)
class WeightNoise(Sampler):
    """Entry-wise noise on one linear map in every layer, in prompt and thoughts.

    weight_noise_std: sigma, in units of the weights themselves. weight_noise_target: the linear
    map, one of TARGETS. Every sample reads the prompt under its own noise. It is off from the
    end-of-thinking token on. E is made anew in every pass, in parts, since a weight for each row
    would not fit in memory: slow, and bounded in memory.
    """

    weight_noise_std: float = 0.0
    weight_noise_target: str = "attn_v"

    strength = "weight_noise_std"
    varies_passes = own_prompts = changes_prompt_start = True
    compiles = False  # the number of parts depends on the number of rows

    def __post_init__(self):
        check_strength("weight_noise_std", self.weight_noise_std)
        check_target("weight_noise_target", self.weight_noise_target)

    def pass_hook(self, model, rng_keys, steps):
        keys = rng.fold(rng_keys, _WHOLE_TRAJECTORY)
        width = model.weight_of(model.blocks[0], self.weight_noise_target).shape[1]
        return WeightHook(keys, self.weight_noise_std, self.weight_noise_target, width)

    def answer_hook(self, model, rng_keys, steps, num_thoughts=None):
        if num_thoughts is None:
            return NO_HOOK
        thinking = (steps <= num_thoughts[:, None])[..., None]  # (R, S, 1)
        return replace(self.pass_hook(model, rng_keys, steps), thinking=thinking)


@dataclass
class WeightHook(PassHook):
    """keys (R,): of the trajectories. thinking (R, S, 1) bool: where it acts, None: everywhere."""

    keys: torch.Tensor
    std: float
    target: str
    width: int
    thinking: torch.Tensor | None = None

    def linear(self, layer):
        return partial(self.change, layer)

    def change(self, layer, target, x):
        """sigma x E, (R, S, O), at inputs x (R, S, I)."""
        if target != self.target:
            return None
        keys, inputs = rng.fold(self.keys, layer)[:, None], x.shape[-1]  # (R, 1)
        rows = max(1, _NUMBERS.get(x.device.type, _NUMBERS["cpu"]) // (inputs * self.width))
        of_rows = zip(keys.split(rows), x.split(rows), strict=True)
        change = self.std * torch.cat([self._times_noise(*part) for part in of_rows])
        return change if self.thinking is None else change * self.thinking

    def _times_noise(self, keys, x):
        """x E, (r, S, O), of some rows with keys (r, 1)."""
        size = max(1, _NUMBERS.get(x.device.type, _NUMBERS["cpu"]) // self.width)
        numbers = torch.arange(x.shape[-1], device=x.device).split(size)
        product = x.new_zeros(*x.shape[:2], self.width)
        for part, of_part in zip(numbers, x.split(size, dim=-1), strict=True):
            noise = rng.normal(keys, part, self.width).to(x.dtype)  # (r, i, O)
            product = torch.baddbmm(product, of_part, noise)
        return product

    def at(self, index):
        thinking = None if self.thinking is None else self.thinking[index]
        return replace(self, thinking=thinking)
