"""How many kernels a layer starts in one step, counted at torch's dispatcher, in eager mode."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from src.sampling.engine import sample
from src.sampling.trajectories import Request

_NO_KERNELS = ("empty", "new_empty", "empty_like", "empty_strided", "_unsafe_view", "lift_fresh")
_SYNCHRONIZES = ("_local_scalar_dense", "nonzero")
_STEPS = 8  # over so many steps is averaged, since not every one looks for the end of text


class KernelCount(TorchDispatchMode):
    """Counts operations that compute: no views, no allocations.

    synchronizations: how many of them wait for the device.
    """

    def __init__(self):
        super().__init__()
        self.kernels = self.synchronizations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with self:  # in inference mode a composite operation comes here whole
            parts = function.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        name = function.overloadpacket.__name__
        self.kernels += not (_is_view(function) or name in _NO_KERNELS)
        self.synchronizations += name in _SYNCHRONIZES
        return function(*args, **kwargs)


def _is_view(function):
    """Whether an operation returns its input's memory without writing to it."""
    returned = [value.alias_info for value in function._schema.returns]
    return any(alias is not None and not alias.is_write for alias in returned)


def kernels_per_layer(model, sampling):
    """{"latent step", "answer step": {"kernels", "synchronizations"}}.

    kernels: a layer and step, that is all of a step divided by the number of layers.
    synchronizations: a step.
    """
    base = _count(model, sampling, 1, 1)
    figures = {}
    for name, lengths in {"latent step": (1 + _STEPS, 1), "answer step": (1, 1 + _STEPS)}.items():
        more = _count(model, sampling, *lengths)
        kernels = (more.kernels - base.kernels) / _STEPS
        synchronizations = (more.synchronizations - base.synchronizations) / _STEPS
        figures[name] = {
            "kernels": kernels / len(model.blocks),
            "synchronizations": synchronizations,
        }
    return figures


def _count(model, sampling, thoughts, answer):
    prompts = [[1, 2, 3, 4], [1, 2, 3]]  # of different lengths, as in most batches
    request = Request(prompts, [0, 1], 4, thoughts, answer, 0, sampling)
    with KernelCount() as count, torch.inference_mode():
        sample(model, request)
    return count
