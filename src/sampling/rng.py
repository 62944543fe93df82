"""Counter-based random numbers: a number is a pure function of where it is used.

A *key* is a 64-bit hash of (seed, question, sample, step, site), folded in one after the other
with the finalizer of SplitMix64 (Steele, Lea, Flood 2014). There is no generator with a state, so
a number does not depend on batch size, number of samples, order, processes or device. The
arithmetic is int64, which wraps around in the same way on CPU and CUDA.
"""

import math

import torch


def _signed(x):
    return x - (1 << 64) if x >> 63 else x


_WEYL = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _fold_shift(x, bits):
    # An int64 shift copies the sign in from the left; the mask makes the shift logical.
    return x.bitwise_xor_((x >> bits).bitwise_and_((1 << (64 - bits)) - 1))


def _mix_(x):
    """SplitMix64's finalizer, in place, on an int64 tensor."""
    _fold_shift(x, 30).mul_(_MIX_1)
    _fold_shift(x, 27).mul_(_MIX_2)
    return _fold_shift(x, 31)


def fold(keys, value):
    """New keys from int64 keys and a value, an int or an int64 tensor that broadcasts."""
    if isinstance(value, int):  # computed here: copying it to a GPU would wait for the device
        return _mix_(keys + _signed((value + 1) * _WEYL & ((1 << 64) - 1)))
    return _mix_(keys + _times_weyl(value))


def _times_weyl(value):
    """(value + 1) * _WEYL, of an int64 tensor.

    value + 1 is -(~value), and the compiler does not see through ~. It would turn the product of an
    arange and a constant into an index of 32 bits, in which Triton refuses _WEYL.
    """
    return ~value * -_WEYL


def row_keys(seed, questions, samples, device):
    """(R,) keys of rows that belong to the given question and sample indices, (R,) int64 each."""
    keys = fold(torch.zeros((), dtype=torch.int64, device=device), seed)
    return fold(fold(keys, questions.to(device)), samples.to(device))


def _words(keys, site, count):
    """(..., count) random 64-bit words for each key (...)."""
    counter = _times_weyl(torch.arange(count, device=keys.device))
    return _mix_(fold(keys, site)[..., None] + counter)


def dropped(keys, site, width, p):
    """Bernoulli(p) mask (..., width), true = dropped; p is rounded to a multiple of 2^-16."""
    bits = _words(keys, site, -(-width // 4)).view(torch.int16)[..., :width]
    return bits < min(round(p * 65536), 65535) - 32768


def uniform(keys, site):
    """A number in (0, 1) for each key (...), float64, uniform."""
    words = _words(keys, site, 1)[..., 0]
    return ((words >> 12).bitwise_and_((1 << 52) - 1).double() + 0.5) / 2**52


def normal(keys, site, width):
    """Standard normal numbers (..., width), float32, by Box and Muller in double precision."""
    words = _words(keys, site, -(-width // 2))
    radius = ((words >> 32).bitwise_and_(0xFFFFFFFF).double() + 0.5) / 2**32
    radius = radius.log_().mul_(-2).sqrt_()
    angle = words.bitwise_and_(0xFFFFFFFF).double() * (2 * math.pi / 2**32)
    return torch.cat((radius * angle.cos(), radius * angle.sin()), dim=-1)[..., :width].float()
