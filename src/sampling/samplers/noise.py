"""Additive Gaussian noise on the thoughts (You et al., arXiv 2510.07745, section 3)."""

from dataclasses import dataclass

from src.sampling import rng
from src.sampling.samplers.base import Sampler, check_strength

_NOISE_SITE = -1


@dataclass(frozen=True)
class Noise(Sampler):
    """h_t + eps, eps ~ N(0, sigma^2 I), for every thought that is fed back; sigma: noise_std."""

    noise_std: float = 0.0

    strength = "noise_std"
    varies_thoughts = True

    def __post_init__(self):
        check_strength("noise_std", self.noise_std)

    def next_thought(self, thought, rng_keys, step):
        noise = rng.normal(rng.fold(rng_keys, step), _NOISE_SITE, thought.shape[-1])  # (R, D)
        return thought + (self.noise_std * noise).to(thought.dtype)
