"""Memory of a device, as this process sees it: what it holds, what is free, and when it ran out."""

import ctypes
import os

import psutil
import torch

GIB = 1 << 30
_CUDA_CONTEXT = 600 << 20  # what CUDA itself takes, about; PyTorch's allocator does not count it
_MESSAGES = (  # of RuntimeErrors: main memory, CUDA beside PyTorch's allocator, its matrix products
    "DefaultCPUAllocator: can't allocate",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def held(device):
    """Bytes that this process holds: on CUDA on the device, else in main memory."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) + _CUDA_CONTEXT
    return psutil.Process().memory_info().rss


def free(device):
    """Bytes that this process may still take: its share, if others were launched with it."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # of this machine, as torchrun says
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        processes_a_device = -(-processes // torch.cuda.device_count())
        return (torch.cuda.mem_get_info(device)[0] + unused) // processes_a_device
    return psutil.virtual_memory().available // processes


def cap(device, size):
    """On CUDA an allocation that would make ``held`` more than ``size`` bytes is out of memory.

    None: no cap but the device's. Main memory has none.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        share = 1.0 if size is None else max(0.0, min(1.0, (size - _CUDA_CONTEXT) / total))
        torch.cuda.set_per_process_memory_fraction(share, device)


def ran_out(error):
    """Whether an exception says that memory ran out; PyTorch has no class for some causes."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _MESSAGES)


def release(device):
    """Gives memory that PyTorch or the C library keeps for later back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif trim := _malloc_trim():
        trim(0)


def _malloc_trim():
    """glibc's function of this name; None where the C library has none."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
