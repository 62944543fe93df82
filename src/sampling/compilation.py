"""Steps of the engine compiled by torch.compile, each as one graph for all shapes of a kind."""

import shutil
import time
from functools import cache

import torch
from torch._dynamo.utils import counters

# Samplers, prompts with or without padding and the like have graphs of their own.
_MOST_GRAPHS = 64


class Compilation:
    """Whether a model's steps are compiled, its attribute ``compilation``.

    seconds: spent in calls that compiled.
    """

    def __init__(self):
        torch._dynamo.config.recompile_limit = _MOST_GRAPHS
        self.seconds = 0.0

    def run(self, model, step, inputs):
        """step(model, *inputs)."""
        graphs, start = counters["stats"]["unique_graphs"], time.monotonic()
        result = _compiled(step)(model, *inputs)
        if counters["stats"]["unique_graphs"] > graphs:
            self.seconds += time.monotonic() - start
        return result


@cache
def _compiled(step):
    return torch.compile(step, fullgraph=True, dynamic=True)


def run_step(model, step, *inputs):
    """step(model, *inputs), a function of tensors; compiled where the model has a Compilation."""
    compilation = getattr(model, "compilation", None)
    return step(model, *inputs) if compilation is None else compilation.run(model, step, inputs)


def has_compiler(device):
    """Whether torch.compile finds what it needs: Triton for CUDA, a C++ compiler for a CPU."""
    if device.type == "cuda":
        return torch.utils._triton.has_triton()
    return any(map(shutil.which, ("g++", "clang++", "c++")))
