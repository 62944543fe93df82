"""The rows of the sampling engine between two forward passes."""

from dataclasses import dataclass, replace

import torch


@dataclass
class State:
    """Rows between two forward passes. Prompt and earlier thoughts are in the caches.

    thought (R, D): the next input, or None when all thoughts have been read. rng_keys (R,): the
    rows' random keys. prompt_lengths (R,). num_thoughts (R,): thoughts so far. prefix: PrefixCache
    of G prompts, which is never changed. suffix: SuffixCache of the R rows.
    """

    thought: torch.Tensor | None
    rng_keys: torch.Tensor
    prompt_lengths: torch.Tensor
    num_thoughts: torch.Tensor
    prefix: object
    suffix: object

    def __len__(self):
        return len(self.rng_keys)

    @property
    def all_rows(self):
        return torch.arange(len(self), device=self.rng_keys.device)

    def write_suffix(self, rows, part):
        """Copies the suffix of ``part``, a copy of the given rows that went on, to these rows."""
        if part is not self:
            self.suffix.write(rows, part.suffix)

    def select(self, rows, length=None, extra=None):
        """A copy of the given rows, an index tensor; rows may repeat.

        length, extra: crop the suffix and make room in it, as in SuffixCache.select.
        """
        return State(
            thought=None if self.thought is None else self.thought[rows],
            rng_keys=self.rng_keys[rows],
            prompt_lengths=self.prompt_lengths[rows],
            num_thoughts=self.num_thoughts[rows],
            prefix=self.prefix.select(self.prefix.groups_of(len(self))[rows]),
            suffix=self.suffix.select(rows, length, extra),
        )

    def fork(self):
        """The same rows in the same memory. What it reads on is no part of this State."""
        return replace(self, suffix=self.suffix.fork())

    def join(self, other):
        """One State of these rows and those of another, whose thoughts have all been read."""
        names = ("rng_keys", "prompt_lengths", "num_thoughts")
        return State(
            thought=None,
            **{name: torch.cat((getattr(self, name), getattr(other, name))) for name in names},
            prefix=self.prefix.join(other.prefix, len(self), len(other)),
            suffix=self.suffix.join(other.suffix),
        )
