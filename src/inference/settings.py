"""The flags of src.infer_gpt2."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from src.models import BACKBONES
from src.models.loading import DTYPES
from src.sampling.samplers import MASKS, SAMPLERS, Sampling
from utils.metrics import powers_of_two

SAMPLER_DEFAULTS = {
    "dropout": {
        "dropout_p": 0.2, "dropout_prompt": True, "dropout_answer": False, "dropout_mask": "step",
    },
    "noise": {"noise_std": 0.6},
}  # fmt: skip


def _flag(default, text, choices=None):
    metadata = {"help": text} | ({"choices": list(choices)} if choices else {})
    return field(default=default, metadata=metadata)


@dataclass
class InferenceSettings:
    """Sampled inference with majority voting. Raises ValueError on impossible combinations."""

    model_type: str = _flag("coconut", "backbone", BACKBONES)
    model_id: str = _flag("checkpoints/tiny-coconut", "folder or hub id of the checkpoint")
    model_dtype: str = _flag("float32", "number format of the weights", DTYPES)
    data_path: str = _flag("data/tiny_test.json", "JSON list of question, steps, answer")
    n_samples: int = _flag(64, "trajectories N a question")
    report_n: list[int] = field(
        default=None, metadata={"help": "sizes of the pool to report, default 1 4 16 64 up to N"}
    )
    batch_size: int = _flag(8, "questions a batch")
    limit: int | None = _flag(None, "only the first so many questions")
    latent_length: int = _flag(6, "thoughts T a trajectory")
    max_new_tokens: int = _flag(64, "answer tokens at most")
    do_sample: bool = _flag(True, "false: one deterministic trajectory a question")
    sampling_by: str | None = _flag(None, "how thoughts are sampled, default dropout", SAMPLERS)
    dropout_p: float | None = _flag(None, "dropout rate, default 0.2")
    noise_std: float | None = _flag(None, "sigma of the noise, default 0.6")
    dropout_prompt: bool | None = _flag(None, "false: all samples share one reading of the question")
    dropout_answer: bool | None = _flag(None, "true: dropout in the last thought and the answer too")
    dropout_mask: str | None = _flag(None, "a fresh mask every step, or one a trajectory", MASKS)
    seed: int = _flag(42, "with question and sample index it fixes every random number")
    output_dir: str | None = _flag(None, "default: outputs/ and a name made of the settings")
    save_latents: bool = _flag(False, "true: also write the thoughts, latents/*.safetensors")
    overwrite: bool = _flag(False, "true: remove what --output_dir holds first")

    def __post_init__(self):
        for name in ("n_samples", "batch_size", "latent_length", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, not {getattr(self, name)}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit must be at least 1, not {self.limit}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed must lie between 0 and 2^63 - 1, not {self.seed}")
        if not self.do_sample and self.n_samples > 1:
            raise ValueError(
                f"--do_sample false gives {self.n_samples} equal trajectories: add --n_samples 1"
            )
        self._resolve_sampler()
        self.report_n = sorted(set(self.report_n or self._default_report()))
        if not 1 <= self.report_n[0] <= self.report_n[-1] <= self.n_samples:
            raise ValueError(f"--report_n must lie between 1 and --n_samples {self.n_samples}")
        self.sampling  # noqa: B018  checks its values
        self.output_dir = self.output_dir or f"outputs/{self.run_name}"

    def _default_report(self):
        return [n for n in powers_of_two(self.n_samples) if n.bit_length() % 2] + [self.n_samples]

    def _resolve_sampler(self):
        """Fills in the sampler's defaults; a flag that would have no effect is an error."""
        if self.do_sample and self.sampling_by is None:
            self.sampling_by = "dropout"
        defaults = SAMPLER_DEFAULTS.get(self.sampling_by if self.do_sample else None, {})
        why = f"--sampling_by {self.sampling_by}" if self.do_sample else "--do_sample false"
        every = {name for flags in SAMPLER_DEFAULTS.values() for name in flags}
        for name in sorted(every | ({"sampling_by"} if not self.do_sample else set())):
            if name not in defaults and getattr(self, name) is not None:
                raise ValueError(f"--{name} has no effect with {why}: leave it out")
        for name, value in defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    @property
    def sampling(self):
        """The sampler's part of the settings."""
        flags = SAMPLER_DEFAULTS.get(self.sampling_by, {})
        return Sampling(by=self.sampling_by, **{name: getattr(self, name) for name in flags})

    @property
    def run_name(self):
        """Deterministic: model, data, sampler, and a digest of all that determines the samples."""
        strength = self.dropout_p if self.sampling_by == "dropout" else self.noise_std
        sampler = f"{self.sampling_by}-{strength}" if self.do_sample else "greedy"
        model, data = Path(self.model_id).name, Path(self.data_path).stem
        digest = hashlib.sha256(json.dumps(self.result_settings()).encode()).hexdigest()[:6]
        return f"{model}-{data}-{sampler}-n{self.n_samples}-seed{self.seed}-{digest}"

    def result_settings(self):
        """What determines the samples: a run may be resumed under these and no others."""
        free = {"batch_size", "report_n", "output_dir", "overwrite"}
        return {key: value for key, value in asdict(self).items() if key not in free}
