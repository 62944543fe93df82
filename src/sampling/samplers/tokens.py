"""Sampled answer tokens: the thoughts stay deterministic.

Temperature and top-p (nucleus) sampling: Holtzman et al., arXiv 1904.09751, section 3.1.
"""

from dataclasses import dataclass

import torch

from src.sampling import rng
from src.sampling.logits import in_chunks
from src.sampling.samplers.base import Sampler, check_strength

_TOKEN_SITE = -4
_LOGIT_BYTES = 48  # of a logit: float32, probabilities, their order, sums in float64, temporaries


@dataclass(frozen=True)
class Tokens(Sampler):
    """Answer tokens from softmax(logits / temperature), cut to the nucleus of mass ``top_p``.

    The nucleus is the smallest set of likeliest tokens whose probability is at least ``top_p``. A
    token is the inverse of the distribution function at one uniform number, keyed by the trajectory
    and the token's position, so that it depends on nothing else. Temperature 0 is greedy.
    """

    temperature: float = 1.0
    top_p: float = 1.0

    strength = "temperature"
    varies_answers = True

    def __post_init__(self):
        check_strength("temperature", self.temperature)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}")

    def next_tokens(self, model, hidden, rng_keys, steps):
        uniform = rng.uniform(rng.fold(rng_keys, steps), _TOKEN_SITE)  # (R,)
        return in_chunks(model, self._draw, hidden, uniform, logit_bytes=_LOGIT_BYTES)

    def _draw(self, logits, uniform):
        """Tokens (r,) by logits (r, V) and numbers (r,) in (0, 1)."""
        logits = logits.float()
        logits = logits - logits.max(dim=-1, keepdim=True).values  # no overflow when divided
        p = (logits / self.temperature).softmax(-1)  # (r, V)
        if self.top_p < 1:
            likeliest, ids = p.sort(dim=-1, descending=True, stable=True)
            mass_before = likeliest.cumsum(-1, dtype=torch.float64) - likeliest
            likeliest = likeliest.masked_fill(mass_before >= self.top_p, 0)
            # In the vocabulary's order: rounding may swap two tokens that are equally likely.
            p = torch.zeros_like(p).scatter(-1, ids, likeliest)
        total = p.cumsum(-1, dtype=torch.float64)
        place = torch.searchsorted(total, (uniform * total[:, -1])[:, None], right=True)  # (r, 1)
        return place.clamp_(max=p.shape[-1] - 1)[:, 0]
