"""The flags of the commands that sample."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from src.models import BACKBONES
from src.models.loading import checkpoint_defaults, default_backbone, default_reward_model
from src.models.precision import DTYPES, fastest_format
from src.sampling.engine import Request
from src.sampling.samplers import MASKS, SAMPLERS, Sampling
from utils.config import check_seed
from utils.metrics import powers_of_two

SAMPLER_FLAGS = {
    "dropout": ("dropout_p", "dropout_prompt", "dropout_answer", "dropout_mask"),
    "noise": ("noise_std",),
}
MODEL_ID = "folder or hub id of the checkpoint, default: checkpoints/<type>, or else the bundled one"
OUTPUT_DIR = "default: outputs/ and a name made of the settings; {sampler} in it is the sampler's name"
PRM_MODES = ("best_of_n", "beam_search")
SCORES = ("sum", "mean")
MODE_DEFAULTS = {
    "best_of_n": {"num_return_sequences": 64, "bayesian_vote": True, "report_n": None, "pool": None},
    "beam_search": {"num_beams": 4, "num_beam_candidates": 4},
}


def _flag(default, text, choices=None, aliases=()):
    metadata = {"help": text, "aliases": list(aliases)} | ({"choices": list(choices)} if choices else {})
    return field(default=default, metadata=metadata)


@dataclass
class SamplingSettings:
    """What determines how latent thoughts are sampled. Raises ValueError on impossible combinations.

    Subclasses hold ``model_type``, ``model_id`` and ``n_samples``, as flags or as properties. Flags that
    are not given take the checkpoint's values (generation_config.json), or the paper's where it has none.
    """

    model_dtype: str = _flag(
        "float32", "number format of the weights; auto: bfloat16 where it is fast", ("auto", *DTYPES)
    )
    data_path: str = _flag("data/tiny_test.json", "JSON list of question, steps, answer")
    batch_size: int = _flag(8, "questions a batch")
    limit: int | None = _flag(None, "only the first so many questions")
    latent_length: int | None = _flag(
        None,
        "thoughts T a trajectory, or the cap of a backbone that stops itself; default: the checkpoint's",
        aliases=["--max_latent_length"],
    )
    max_new_tokens: int | None = _flag(None, "answer tokens at most, default: the checkpoint's")
    sampling_by: str | None = _flag(None, "how thoughts are sampled, default dropout", SAMPLERS)
    dropout_p: float | None = _flag(None, "dropout rate, default: the checkpoint's")
    noise_std: float | None = _flag(None, "sigma of the noise, default: the checkpoint's")
    dropout_prompt: bool | None = _flag(None, "false: all samples share one reading of the question")
    dropout_answer: bool | None = _flag(
        None, "true: dropout in the answer too, and (CoLaR always) in the last thought"
    )
    dropout_mask: str | None = _flag(None, "a fresh mask every step, or one a trajectory", MASKS)
    seed: int = _flag(42, "with question and sample index it fixes every random number")
    allow_unknown: bool = _flag(
        False, "true: go on where more than a tenth of the questions hold words unknown to the model"
    )
    overwrite: bool = _flag(False, "true: remove what the output folder holds first")

    do_sample, save_latents = True, False
    architecture = None  # which backbones the command takes, None: all
    type_flag, id_flag = "model_type", "model_id"
    sampler_flags = SAMPLER_FLAGS
    free = ("batch_size", "allow_unknown", "overwrite")  # flags that do not change the results

    def __post_init__(self):
        self._check_backbone()
        if self.model_dtype == "auto":
            self.model_dtype = fastest_format()
        self._defaults = checkpoint_defaults(self.model_type, self.model_id, f"--{self.id_flag}")
        for name in ("latent_length", "max_new_tokens"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(self._defaults, name))
        for name in ("batch_size", "latent_length", "max_new_tokens"):
            self._at_least(name, 1)
        if self.limit is not None:
            self._at_least("limit", 1)
        check_seed(self.seed, "--seed")
        self._resolve_sampler()
        self.sampling  # noqa: B018  checks its values

    def _at_least(self, name, least):
        if getattr(self, name) < least:
            raise ValueError(f"--{name} must be at least {least}, not {getattr(self, name)}")

    def _check_backbone(self):
        if self.model_type not in BACKBONES:
            known = ", ".join(BACKBONES)
            raise ValueError(f"--{self.type_flag} must be one of {known}, not {self.model_type!r}")
        architecture = BACKBONES[self.model_type].config_class.model_type
        if self.architecture not in (None, architecture):
            raise ValueError(
                f"--{self.type_flag} {self.model_type} is a {architecture} backbone: use the command "
                f"with {architecture} in its name"
            )

    def _resolve_sampler(self):
        """Fills in the sampler's defaults; a flag that would have no effect is an error."""
        if self.do_sample and self.sampling_by is None:
            self.sampling_by = "dropout"
        defaults = self._sampler_defaults()
        why = f"--sampling_by {self.sampling_by}" if self.do_sample else "--do_sample false"
        every = {name for flags in self.sampler_flags.values() for name in flags}
        for name in sorted(every | ({"sampling_by"} if not self.do_sample else set())):
            if name not in defaults and getattr(self, name) is not None:
                raise ValueError(f"--{name} has no effect with {why}: leave it out")
        for name, value in defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def _sampler_defaults(self):
        names = self.sampler_flags.get(self.sampling_by if self.do_sample else None, ())
        return {name: getattr(self._defaults, name) for name in names}

    @property
    def sampling(self):
        """The sampler's part of the settings."""
        flags = {name: getattr(self, name) for name in self._sampler_defaults()}
        return Sampling(by=self.sampling_by, **flags)

    def request(self, prompts, questions):
        """The engine's Request for a batch: lists of token ids, and the questions' indices."""
        return Request(
            prompts=prompts,
            questions=questions,
            n_samples=self.n_samples,
            latent_length=self.latent_length,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            sampling=self.sampling,
        )

    @property
    def sampler_name(self):
        """The sampler with its strength, such as ``noise-0.8``, or ``greedy``."""
        strength = self.dropout_p if self.sampling_by == "dropout" else self.noise_std
        return f"{self.sampling_by}-{strength}" if self.do_sample else "greedy"

    @property
    def run_name(self):
        """Deterministic: model, data, sampler, and a digest of all that determines the samples."""
        model, data = Path(self.model_id).name, Path(self.data_path).stem
        digest = hashlib.sha256(json.dumps(self.result_settings()).encode()).hexdigest()[:6]
        return f"{model}-{data}-{self.sampler_name}-n{self.n_samples}-seed{self.seed}-{digest}"

    def _named_output(self, default):
        """--output_dir, where ``{sampler}`` stands for the sampler's name, or its default."""
        return (self.output_dir or default).replace("{sampler}", self.sampler_name)

    def result_settings(self):
        """What determines the samples: a run may be resumed under these and no others."""
        return {key: value for key, value in asdict(self).items() if key not in self.free}


def report_sizes(report_n, n_samples):
    """The sorted sizes of the pool to report. Raises ValueError when one is impossible."""
    default = [n for n in powers_of_two(n_samples) if n.bit_length() % 2] + [n_samples]
    sizes = sorted(set(report_n or default))
    if not 1 <= sizes[0] <= sizes[-1] <= n_samples:
        raise ValueError(f"--report_n must lie between 1 and --n_samples {n_samples}")
    return sizes


@dataclass
class InferenceSettings(SamplingSettings):
    """The flags of src.infer_gpt2: sampled inference with majority voting."""

    model_type: str = _flag("coconut", "backbone, a GPT-2: coconut or codi")
    model_id: str | None = _flag(None, MODEL_ID)
    n_samples: int | None = _flag(
        None, "trajectories N a question, default 64; 1 where nothing is sampled"
    )
    report_n: list[int] = field(
        default=None, metadata={"help": "sizes of the pool to report, default 1 4 16 64 up to N"}
    )
    do_sample: bool = _flag(True, "false: one deterministic trajectory a question")
    bayesian_vote: bool = _flag(False, "true: also vote by the mean probability of each answer")
    output_dir: str | None = _flag(None, OUTPUT_DIR)
    save_latents: bool = _flag(False, "true: also write the thoughts, latents/*.safetensors")

    architecture = "gpt2"
    free = (*SamplingSettings.free, "report_n", "output_dir")

    def __post_init__(self):
        self.model_id = self.model_id or default_backbone(self.model_type)
        if self.n_samples is None:
            self.n_samples = 64 if self.do_sample else 1
        self._at_least("n_samples", 1)
        if not self.do_sample and self.n_samples > 1:
            raise ValueError(
                f"--do_sample false gives {self.n_samples} equal trajectories: leave out --n_samples"
            )
        super().__post_init__()
        self.report_n = report_sizes(self.report_n, self.n_samples)
        self.output_dir = self._named_output(f"outputs/{self.run_name}")


@dataclass
class LlamaInferenceSettings(InferenceSettings):
    """The flags of src.infer_llama."""

    model_type: str = _flag("colar", "backbone, a LLaMA: colar")

    architecture = "llama"


@dataclass
class AnnotationSettings(SamplingSettings):
    """The flags of src.annotate_data."""

    save_path: str = _flag("outputs/annotated", "folder of the pools")
    name: str | None = _flag(None, "the pool's folder in it, default: a name made of the settings")
    model_type: str = _flag("coconut", f"backbone: {', '.join(BACKBONES)}")
    model_id: str | None = _flag(None, MODEL_ID)
    n_samples: int = _flag(8, "trajectories n a question")
    n_samples_per_step: int = _flag(64, "rollouts M from every thought; 0: labels are the outcome")
    dropout_embedding: bool | None = _flag(
        None, "dropout after the embedding too, default true, CoLaR has none"
    )
    shard_size: int = _flag(64, "questions a file")

    sampler_flags = SAMPLER_FLAGS | {"dropout": (*SAMPLER_FLAGS["dropout"], "dropout_embedding")}
    free = (*SamplingSettings.free, "save_path", "name")

    def __post_init__(self):
        self.model_id = self.model_id or default_backbone(self.model_type)
        for name, least in (("n_samples", 1), ("n_samples_per_step", 0), ("shard_size", 1)):
            self._at_least(name, least)
        super().__post_init__()
        if self.dropout_embedding and not BACKBONES[self.model_type].paper_defaults.dropout_embedding:
            raise ValueError(
                f"--dropout_embedding true: {self.model_type} has no such dropout; leave it out"
            )
        self.name = self.name or self.run_name

    @property
    def folder(self):
        return Path(self.save_path) / self.name


@dataclass
class RewardSettings(SamplingSettings):
    """The flags of src.infer_gpt2_rm: choosing among trajectories by LatentRM."""

    prm_id: str | None = _flag(
        None, "folder or hub id of the reward model, default: the backbone's, see checkpoints/README.md"
    )
    prm_mode: str = _flag("best_of_n", "choose from a pool, or guide the thinking", PRM_MODES)
    generator_type: str = _flag("coconut", "backbone, a GPT-2: coconut or codi")
    generator_id: str | None = _flag(None, MODEL_ID)
    score_by: str = _flag(
        "sum",
        "how the rewards of a trajectory's thoughts make its score (the answer's is added)",
        SCORES,
    )
    num_return_sequences: int | None = _flag(None, "best_of_n: trajectories N, default 64")
    report_n: list[int] = field(
        default=None, metadata={"help": "best_of_n: sizes of the pool to report, default 1 4 16 64"}
    )
    pool: str | None = _flag(None, "best_of_n: score this run of infer_gpt2 --save_latents true instead")
    bayesian_vote: bool | None = _flag(None, "best_of_n: also the Bayesian vote, default true")
    num_beams: int | None = _flag(None, "beam_search: beams B, default 4")
    num_beam_candidates: int | None = _flag(None, "beam_search: candidates C of each, default 4")
    output_dir: str | None = _flag(None, OUTPUT_DIR)

    architecture = "gpt2"
    type_flag, id_flag = "generator_type", "generator_id"
    free = (*SamplingSettings.free, "report_n", "output_dir")

    def __post_init__(self):
        if self.pool is not None and self.prm_mode == "best_of_n":
            self._take_from_pool()
        self.generator_id = self.generator_id or default_backbone(self.generator_type)
        self.prm_id = self.prm_id or default_reward_model(self.generator_type, self.generator_id)
        self._resolve_mode()
        super().__post_init__()
        if self.prm_mode == "best_of_n":
            self.report_n = report_sizes(self.report_n, self.n_samples)
        elif self.dropout_mask == "trajectory":
            raise ValueError("--dropout_mask trajectory: beams draw anew at every step; leave it out")
        self.output_dir = self._named_output(f"outputs/{Path(self.prm_id).name}-{self.run_name}")

    def _resolve_mode(self):
        """Fills in the mode's defaults; a flag of the other mode is an error."""
        other = next(mode for mode in PRM_MODES if mode != self.prm_mode)
        for name in MODE_DEFAULTS[other]:
            if getattr(self, name) is not None:
                raise ValueError(f"--{name} has no effect with --prm_mode {self.prm_mode}: leave it out")
        for name, value in MODE_DEFAULTS[self.prm_mode].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
            if type(value) is int:
                self._at_least(name, 1)

    def _take_from_pool(self):
        """The settings under which the pool was sampled; a flag that contradicts it is an error."""
        for name, default in _defaults(self).items():
            stays = name in (*self.free, "prm_id", "prm_mode", "pool", "score_by")
            if not stays and getattr(self, name) != default:
                raise ValueError(f"--{name} has no effect with --pool: leave it out")
        try:
            pool = json.loads((Path(self.pool) / "config.json").read_text(encoding="utf-8"))["settings"]
            for name in _defaults(self):
                if name in pool and name not in self.free:
                    setattr(self, name, pool[name])
            self.generator_type, self.generator_id = pool["model_type"], pool["model_id"]
            self.num_return_sequences = pool["n_samples"]
            self.bayesian_vote = pool["bayesian_vote"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(
                f"--pool {self.pool}: no run there; sample one, src.infer_gpt2 --save_latents true"
            ) from None
        if not pool["do_sample"]:
            raise ValueError(
                f"--pool {self.pool}: one greedy trajectory a question, nothing to choose from"
            )
        if not pool["save_latents"]:
            raise ValueError(f"--pool {self.pool}: sampled without --save_latents true; sample it again")

    model_type = property(lambda self: self.generator_type)
    model_id = property(lambda self: self.generator_id)

    @property
    def n_samples(self):
        """Trajectories a question."""
        return self.num_beams * self.num_beam_candidates if self.num_beams else self.num_return_sequences


@dataclass
class LlamaRewardSettings(RewardSettings):
    """The flags of src.infer_llama_rm."""

    generator_type: str = _flag("colar", "backbone, a LLaMA: colar")

    architecture = "llama"


def _defaults(settings):
    return {field.name: field.default for field in fields(settings)}
