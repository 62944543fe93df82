"""What all workloads share: the model, the machine's limit, and the form of a result."""

import gc
from dataclasses import dataclass

import torch

from benchmarks.counts import least_bytes, operations
from benchmarks.machine import copy_bandwidth, product_rate
from benchmarks.models import build_backbone, random_prompts
from benchmarks.timing import REPEATS
from src.sampling import memory
from src.sampling.samplers import Sampling
from src.sampling.trajectories import Request

LONGEST_ANSWER = 24  # tokens
VARIANTS = {
    "noise": Sampling("noise", noise_std=0.6),
    "dropout, shared prompt": Sampling("dropout", dropout_p=0.2, dropout_prompt=False),
    "dropout, own prompts": Sampling("dropout", dropout_p=0.2),
}


class NotMeasured(Exception):
    """Why a workload can't be measured on this machine."""


@dataclass
class Bench:
    """A model of ``sizes`` on a device, with what the machine can do in its number format.

    rate: operations per second of matrix products. bandwidth: bytes per second of a copy.
    """

    sizes: object
    device: str
    model: object
    rate: float
    bandwidth: float
    repeats: int = REPEATS

    @classmethod
    def of(cls, sizes, device, repeats=REPEATS):
        free(device)
        model = build_backbone(sizes.shape, sizes.dtype, device)
        memory.set_budget([model], sizes.prompt + sizes.thoughts + LONGEST_ANSWER)
        limits = product_rate(model, device), copy_bandwidth(device)
        return cls(sizes, device, model, *limits, repeats)

    def request(self, variant, questions, n_samples, answer=None):
        """A Request of random prompts under a key of VARIANTS."""
        sizes = self.sizes
        ids = random_prompts(self.model.config, questions, sizes.prompt).tolist()
        lengths = (sizes.thoughts, answer or sizes.answer)
        return Request(ids, list(range(questions)), n_samples, *lengths, 0, VARIANTS[variant])

    def count(self, *parts):
        """(operations, least bytes) of parts, each (model, passes)."""
        return tuple(sum(of(*part) for part in parts) for of in (operations, least_bytes))

    def row(self, workload, sizes, timing, counted, plain=None):
        """One result.

        sizes: {name: number}, and the variant, if there are several. counted: (operations, bytes).
        plain: {name: Timing or None} of plain ways that were measured beside it.
        """
        about = {"workload": workload, "shape": self.sizes.shape, "dtype": self.sizes.dtype}
        plain = {name: timing and timing.as_dict() for name, timing in (plain or {}).items()}
        if timing is None:
            return about | sizes | {"out_of_memory": True, "plain": plain}
        limit = max(counted[0] / self.rate, counted[1] / self.bandwidth)
        return about | sizes | timing.as_dict() | {
            "operations": counted[0],
            "bytes": counted[1],
            "limit_s": limit,
            "limit_share": limit / timing.seconds,
            "plain": plain,
        }  # fmt: skip

    def limits(self):
        return {
            "shape": self.sizes.shape,
            "dtype": self.sizes.dtype,
            "operations_per_s": self.rate,
            "bytes_per_s": self.bandwidth,
            "budget_mib": self.model.budget.size / 2**20,
            "weights_mib": sum(p.numel() * p.itemsize for p in self.model.parameters()) / 2**20,
        }


def free(device):
    """Gives back the memory of models that are no longer in use."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
