"""What makes trajectories differ. A sampler is one file here and one entry of SAMPLERS.

Its flags, which become fields of Sampling, are also those of the flags' dataclass
(src/runs/arguments.py) and of a checkpoint's defaults (GenerationDefaults in
src/models/latent_reasoner.py).
"""

from dataclasses import dataclass, fields, make_dataclass

from src.sampling.logits import next_tokens
from src.sampling.samplers.base import ATTENTION, MLP, NO_HOOK, PROMPT, SUFFIX, TARGETS, mixed
from src.sampling.samplers.dropout import EXTRA_DROPOUTS, MASKS, Dropout, dropout_hook
from src.sampling.samplers.noise import Noise
from src.sampling.samplers.svp import SVP
from src.sampling.samplers.tokens import Tokens
from src.sampling.samplers.weight_noise import WeightNoise

SAMPLERS = {
    "dropout": Dropout,
    "noise": Noise,
    "svp": SVP,
    "weight_noise": WeightNoise,
    "tokens": Tokens,
}
PAPER_SAMPLERS = ("dropout", "noise")
SAMPLER_FLAGS = {name: tuple(f.name for f in fields(cls)) for name, cls in SAMPLERS.items()}
STRENGTHS = {name: cls.strength for name, cls in SAMPLERS.items()}  # what tunes each sampler


def sampler_names(method):
    """The samplers of a method, in the order of SAMPLERS: "tokens+noise" is noise, then tokens.

    Raises ValueError on an unknown or a repeated one.
    """
    names = method.split("+") if method else []
    if not set(names) <= SAMPLERS.keys():
        known = ", ".join(SAMPLERS)
        fault = f"sampling_by must be one of {known}, or several joined by +"
        raise ValueError(f"{fault}, not {method!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"sampling_by must be samplers that differ, not {method!r}")
    return [name for name in SAMPLERS if name in names]


_FLAGS = [(f.name, f.type, f.default) for cls in SAMPLERS.values() for f in fields(cls)]
_Settings = make_dataclass("_Settings", [("method", str | None, None), *_FLAGS], frozen=True)


@dataclass(frozen=True)
class Sampling(_Settings):
    """How trajectories are sampled: the settings of all samplers, and their hooks, in order.

    method: a key of SAMPLERS, several joined by "+", or None (deterministic). The other fields are
    those of the samplers, with their defaults; see there.
    Raises ValueError on impossible values.
    """

    def __post_init__(self):
        names = sampler_names(self.method)
        every = {
            name: cls(**{flag: getattr(self, flag) for flag in SAMPLER_FLAGS[name]})
            for name, cls in SAMPLERS.items()
        }
        samplers = tuple(every[name] for name in names if every[name].active)
        object.__setattr__(self, "samplers", samplers)  # the only way in a frozen dataclass

    def _any(self, trait):
        return any(getattr(sampler, trait) for sampler in self.samplers)

    @property
    def uses_dropout(self):
        return any(isinstance(sampler, Dropout) for sampler in self.samplers)

    @property
    def resample_prompt(self):
        """Whether every sample reads the prompt on its own."""
        return self._any("own_prompts")

    @property
    def changes_prompt_start(self):
        """Whether such readings differ early in the first block, see Sampler."""
        return self._any("changes_prompt_start")

    @property
    def varies_passes(self):
        """Whether rows that read the same thought get different hidden states."""
        return self._any("varies_passes")

    @property
    def varies_thoughts(self):
        """Whether the samples of a question differ in their thoughts."""
        return self.varies_passes or self._any("varies_thoughts")

    @property
    def varies_rollouts(self):
        """Whether rollouts from the same last thought differ; they keep dropout to their end."""
        return self.varies_passes or self._any("varies_answers")

    @property
    def compiles(self):
        return all(sampler.compiles for sampler in self.samplers)

    def prepare(self, model):
        for sampler in self.samplers:
            sampler.prepare(model)

    def pass_hook(self, model, rng_keys, steps):
        """As Sampler.pass_hook, of all samplers."""
        return mixed([sampler.pass_hook(model, rng_keys, steps) for sampler in self.samplers])

    def prompt_hook(self, model, rng_keys, steps):
        """As Sampler.pass_hook over the prompt, of the samplers that act there."""
        acting = [sampler for sampler in self.samplers if sampler.own_prompts]
        return mixed([sampler.pass_hook(model, rng_keys, steps) for sampler in acting])

    def answer_hook(self, model, rng_keys, steps, num_thoughts=None):
        """As Sampler.answer_hook, of all samplers."""
        inputs = (model, rng_keys, steps, num_thoughts)
        return mixed([sampler.answer_hook(*inputs) for sampler in self.samplers])

    def next_thought(self, thought, rng_keys, step):
        """As Sampler.next_thought, of all samplers."""
        for sampler in self.samplers:
            thought = sampler.next_thought(thought, rng_keys, step)
        return thought

    def next_tokens(self, model, hidden, rng_keys, steps):
        """As Sampler.next_tokens, of the sampler that chooses tokens; greedy without one."""
        for sampler in self.samplers:
            if sampler.varies_answers:
                return sampler.next_tokens(model, hidden, rng_keys, steps)
        return next_tokens(model, hidden)


DETERMINISTIC = Sampling()

__all__ = [
    "ATTENTION",
    "DETERMINISTIC",
    "EXTRA_DROPOUTS",
    "MASKS",
    "MLP",
    "NO_HOOK",
    "PAPER_SAMPLERS",
    "PROMPT",
    "SAMPLERS",
    "SAMPLER_FLAGS",
    "STRENGTHS",
    "SUFFIX",
    "TARGETS",
    "Sampling",
    "dropout_hook",
    "sampler_names",
]
