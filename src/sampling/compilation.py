"""Steps of the engine compiled by torch.compile, each as one graph for batches of all sizes."""

import os
import shutil
import time
from contextlib import contextmanager
from functools import cache

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._dynamo.utils import counters

from utils.errors import warn

# Samplers, prompts with and without padding and the like have graphs of their own.
_MOST_GRAPHS = 64


class Compilation:
    """How a model's steps are compiled: its attribute ``compilation``, None where they are not.

    required: whether a step that fails to compile is an error. seconds: spent in calls that
    compiled something.
    """

    def __init__(self, required=True):
        torch._dynamo.config.recompile_limit = _MOST_GRAPHS
        self.required, self.seconds = required, 0.0

    def run(self, model, step, inputs):
        """step(model, *inputs)."""
        graphs, start = counters["stats"]["unique_graphs"], time.monotonic()
        try:
            result = compiled(step)(model, *inputs)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            if self.required:
                raise
            model.compilation = None
            warn(f"steps are not compiled ({type(error).__name__}); --compile on shows why")
            return step(model, *inputs)
        if counters["stats"]["unique_graphs"] > graphs:
            self.seconds += time.monotonic() - start
        return result


@cache
def compiled(step):
    """The function ``step``, compiled at its first call and for other kinds of inputs again."""
    return torch.compile(step, fullgraph=True, dynamic=True)


def run_step(model, step, *inputs):
    """step(model, *inputs), a function of tensors; compiled where the model has a Compilation."""
    compilation = getattr(model, "compilation", None)
    return step(model, *inputs) if compilation is None else compilation.run(model, step, inputs)


@contextmanager
def timed_apart(model, counter):
    """Adds the block's time to ``counter["seconds"]``, what compiling took to "compile_seconds"."""
    compilation, start = getattr(model, "compilation", None), time.monotonic()
    before = compilation.seconds if compilation else 0
    yield
    compiling = compilation.seconds - before if compilation else 0
    counter["seconds"] += time.monotonic() - start - compiling
    if compiling:
        counter["compile_seconds"] += compiling


def missing_compiler(device):
    """What torch.compile lacks on a device, or None. CUDA's Triton needs a C compiler, too."""
    if device.type == "cuda" and not torch.utils._triton.has_triton():
        return "Triton"
    names = (os.environ.get("CXX", "g++"), os.environ.get("CC", "gcc"), "clang++", "clang")
    return None if any(map(shutil.which, names)) else "a C++ compiler"
