"""Number formats, and which of them a device computes fast."""

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHORT_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # the release's words


def computes_bf16_fast():
    """Whether this device has instructions for bfloat16.

    CUDA has them from compute capability 8 (Ampere), CPUs with AVX512-BF16 or AMX. Without them a
    CPU is 10 times slower or more.
    """
    if torch.cuda.is_available():
        return torch.cuda.get_device_capability() >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def fastest_format():
    """The key of DTYPES that ``auto`` means on this device."""
    return "bfloat16" if computes_bf16_fast() else "float32"


def resolve_precision(name):
    """``mixed_precision`` of a training, bf16 or no, with ``auto`` resolved. Raises ValueError."""
    if name not in ("auto", "bf16", "no"):
        raise ValueError(f"mixed_precision must be auto, bf16 or no, not {name!r}")
    if name == "auto":
        return "bf16" if computes_bf16_fast() else "no"
    return name


def slowness(dtype):
    """A warning that ``dtype``, a key of DTYPES, is slow on this device, or None."""
    on_gpu = torch.cuda.is_available()
    slow = dtype == "bfloat16" and not computes_bf16_fast()
    if on_gpu and slow:
        name = torch.cuda.get_device_name()
        return f"bfloat16 is slow on {name}, which has no instructions for it"
    if not on_gpu and (slow or dtype == "float16"):
        return (
            f"{dtype} is 10 times slower than float32 or more on this CPU, which has no "
            "instructions for it"
        )
    return None
