"""The flags of the commands that sample, and of those that run many of them."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import ClassVar, get_type_hints

from src.models import BACKBONES, model_class
from src.models.loading import (
    checkpoint_architecture,
    checkpoint_defaults,
    default_backbone,
    default_reward_model,
    gives_probabilities,
    rewards_answers,
)
from src.models.precision import DTYPES, SHORT_NAMES, fastest_format
from src.runs.launch import default_batch_size, default_processes
from src.runs.run_folder import LATER_FLAGS, current_names
from src.sampling.samplers import (
    EXTRA_DROPOUTS,
    MASKS,
    PAPER_SAMPLERS,
    SAMPLER_FLAGS,
    SAMPLERS,
    STRENGTHS,
    TARGETS,
    Sampling,
    sampler_names,
)
from src.sampling.trajectories import Request
from src.search.beam_search import SEARCHES, SearchPlan
from src.search.guides import GUIDES
from src.search.lookahead import ANSWER
from utils.cli import flag
from utils.config import check_seed, typed
from utils.datasets import data_name
from utils.errors import UserError
from utils.hub import HELP, check_push
from utils.hub_data import SYNTAX
from utils.metrics import SCORES

_KNOWN = ", ".join(BACKBONES)
MODEL_ID = (
    "folder or hub id of the checkpoint, default: checkpoints/<type>, or else the bundled one"
)
PURPOSES = ("coverage", "vote")
OUTPUT_DIR = "default: outputs/ and a name made of the settings; {sampler} stands for the sampler"
PROCESSES = "processes, default: one a GPU; without GPUs one a core, at most 4"
SIGNALS = "also choose by the greedy answer, confidence in answers, agreement of thoughts"
PRM_MODES = ("best_of_n", *SEARCHES)
_SEARCH_DEFAULTS = {"num_beams": 4, "num_beam_candidates": 4, "guide": "rm", "lookahead": None}
MODE_DEFAULTS = {
    "best_of_n": {
        "n_samples": 64,
        "bayesian_vote": True,
        "signals": False,
        "report_n": None,
        "pool": None,
    },
    **dict.fromkeys(SEARCHES, _SEARCH_DEFAULTS),
}


def _model_type(default, text):
    return flag(default, text, aliases=["--generator_type"])


def _dropout_embedding(default):
    return flag(None, f"dropout after the embedding too; default: {default}; a LLaMA has none")


@dataclass
class SamplingArguments:
    """What determines how latent thoughts are sampled.

    Flags that are not given take the checkpoint's values (generation_config.json), or the paper's
    where it has none. Raises ValueError on impossible combinations.
    """

    model_dtype: str = flag(
        "float32",
        f"number format, or {', '.join(SHORT_NAMES)}; auto: bfloat16 where it is fast",
        ("auto", *DTYPES),
        synonyms=SHORT_NAMES,
    )
    data_path: str = flag(
        "data/tiny_test.json",
        f"JSON list of question, steps, answer; or a data set of the hub, {SYNTAX}",
    )
    batch_size: int | None = flag(None, "questions a batch, default: 8, on a GPU 64")
    compile: str = flag(
        "auto",
        "compile the steps by torch.compile; auto: on a GPU in runs of 50000 trajectories or more",
        ("auto", "on", "off"),
    )
    memory_gib: float | None = flag(
        None,
        "GiB of memory a process, its models included; default: 8 GiB of work on a CPU or half of "
        "what is free, 80 percent of a GPU's free memory",
    )
    limit: int | None = flag(None, "only the first so many questions")
    latent_length: int | None = flag(
        None,
        "thoughts T, CoLaR: at most; default: the checkpoint's",
        aliases=["--max_latent_length"],
    )
    max_new_tokens: int | None = flag(None, "answer tokens at most, default: the checkpoint's")
    sampling_by: str | None = flag(
        None,
        f"what makes trajectories differ, default dropout: {', '.join(SAMPLERS)}; or several of "
        "them joined by +, such as noise+tokens",
        aliases=["--latent_do_sample_by"],
    )
    dropout_p: float | None = flag(None, "dropout rate, default: the checkpoint's")
    noise_std: float | None = flag(None, "sigma of the noise, default: the checkpoint's")
    tuned_for: str | None = flag(
        None, "take the checkpoint's strength for this purpose, default coverage", PURPOSES
    )
    dropout_prompt: bool | None = flag(None, "false: all samples share one reading of the prompt")
    dropout_answer: bool | None = flag(
        None, "true: dropout in the answer too, and (CoLaR always) in the last thought"
    )
    dropout_mask: str | None = flag(None, "a fresh mask every step, or one a trajectory", MASKS)
    dropout_attention: bool | None = flag(
        None, "dropout of the attention weights too; default: false"
    )
    svp_alpha: float | None = flag(
        None, "svp: relative size of the perturbation, default: the checkpoint's"
    )
    svp_target: str | None = flag(
        None, "svp: the linear map of every layer whose weight is perturbed", TARGETS
    )
    svp_prompt: bool | None = flag(
        None, "svp: false: all samples share one reading of the prompt, which is not perturbed"
    )
    weight_noise_std: float | None = flag(
        None, "weight_noise: sigma of the noise on each entry, default: the checkpoint's"
    )
    weight_noise_target: str | None = flag(
        None, "weight_noise: the linear map of every layer whose weight gets noise", TARGETS
    )
    temperature: float | None = flag(
        None, "tokens: of the softmax that answer tokens are drawn from; 0: greedy"
    )
    top_p: float | None = flag(
        None, "tokens: drawn from the likeliest ones that together have this probability"
    )
    seed: int = flag(42, "with question and sample index it fixes every random number")
    allow_unknown: bool = flag(
        False, "true: accept that over a tenth of the questions hold words unknown to the model"
    )
    overwrite: bool = flag(False, "true: first remove what the output folder holds")
    push_to_hub: str | None = flag(None, HELP)
    model_type: str = _model_type("coconut", f"backbone: {_KNOWN}")
    model_id: str | None = flag(None, MODEL_ID, aliases=["--generator_id"])
    n_samples: int | None = flag(
        None, "trajectories N a question, default 64", aliases=["--num_return_sequences"]
    )

    architecture: ClassVar = None  # of the checkpoints that the command takes, None: any
    # Off unless asked for. Older runs lack these flags: off, they are no part of a run's name.
    off_by_default: ClassVar = EXTRA_DROPOUTS
    # Other flags that older runs lack: at these values they are no part of a run's name.
    unnamed: ClassVar = {}
    # No effect on the results; tuned_for ends in the strengths of the samplers.
    volatile: ClassVar = (
        *("batch_size", "compile", "memory_gib", "tuned_for"),
        *("allow_unknown", "overwrite", "push_to_hub"),
    )

    def _resolve(self, do_sample=True):
        """Fills in the defaults; raises ValueError on impossible values."""
        check_push(self.push_to_hub)
        self.model_id = self.model_id or default_backbone(self.model_type)
        self._check_backbone()
        if self.model_dtype == "auto":
            self.model_dtype = fastest_format()
        if self.batch_size is None:
            self.batch_size = default_batch_size()
        defaults = checkpoint_defaults(self.model_type, self.model_id)
        for name in ("latent_length", "max_new_tokens"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(defaults, name))
        for name in ("batch_size", "latent_length", "max_new_tokens"):
            self._at_least(name, 1)
        if self.limit is not None:
            self._at_least("limit", 1)
        if self.memory_gib is not None and not 0 < self.memory_gib < float("inf"):
            raise ValueError(f"--memory_gib must be a number above 0, not {self.memory_gib}")
        check_seed(self.seed, "--seed")
        self._resolve_sampler(do_sample, defaults)
        self.sampling()  # checks its values

    def _at_least(self, name, least):
        if getattr(self, name) < least:
            raise ValueError(f"--{name} must be at least {least}, not {getattr(self, name)}")

    def _check_backbone(self):
        if self.model_type not in BACKBONES:
            raise ValueError(f"--model_type must be one of {_KNOWN}, not {self.model_type!r}")
        architecture = checkpoint_architecture(self.model_type, self.model_id)
        if self.architecture not in (None, architecture):
            fault = f"--model_type {self.model_type}: {self.model_id} is a {architecture} model"
            raise ValueError(f"{fault}: use the command with {architecture} in its name")

    def _resolve_sampler(self, do_sample, checkpoint):
        """Fills in the sampler's defaults; a flag that would have no effect is an error.

        A subclass has the flag dropout_embedding, each at its own place: run_name depends on it.
        """
        given = self.dropout_embedding
        if do_sample:
            self.sampling_by = "+".join(sampler_names(self.sampling_by or "dropout"))
        allowed = self._flags_of_sampler() if do_sample else ()
        why = f"--sampling_by {self.sampling_by}" if do_sample else "--do_sample false"
        every = {name for flags in SAMPLER_FLAGS.values() for name in flags}
        for name in sorted(every | (set() if do_sample else {"sampling_by"})):
            if name not in allowed and getattr(self, name) is not None:
                raise ValueError(f"--{name} has no effect with {why}: leave it out")
        self._resolve_strength(allowed, why, checkpoint)
        for name in allowed:
            if getattr(self, name) is None:
                default = False if name in self.off_by_default else getattr(checkpoint, name)
                setattr(self, name, default)
        self._check_dropout_embedding(given)

    def _check_dropout_embedding(self, given):
        """Of the paper's defaults and the flag, ``given``, only the flag can be a mistake."""
        architecture = checkpoint_architecture(self.model_type, self.model_id)
        has_it = model_class(self.model_type, architecture).has_embedding_dropout
        if given and not has_it:
            fault = f"a {architecture} model has no such dropout"
            raise ValueError(f"--dropout_embedding true: {fault}; leave it out")
        if self.dropout_embedding:
            self.dropout_embedding = has_it

    def _resolve_strength(self, allowed, why, checkpoint):
        """Fills in the samplers' strengths by ``tuned_for``, which is then done with."""
        if self.tuned_for is None:
            return
        names = [name for name in STRENGTHS.values() if name in allowed]
        missing = [name for name in names if getattr(self, name) is None]
        if not missing:
            why = " and ".join(f"--{name}" for name in names) or why
            raise ValueError(f"--tuned_for has no effect with {why}: leave it out")
        for name in missing:
            value = checkpoint.strength(name, self.tuned_for)
            if value is None:
                fault = f"--tuned_for vote: {self.model_id} has no {name}_for_vote"
                raise ValueError(f"{fault}; python -m src.tune_sampler chooses it")
            setattr(self, name, value)
        self.tuned_for = None

    def _flags_of_sampler(self):
        names = sampler_names(self.sampling_by)
        return tuple(flag for name in names for flag in SAMPLER_FLAGS[name])

    def sampling(self):
        """The Sampling of these flags."""
        flags = {name: getattr(self, name) for name in self._flags_of_sampler()}
        return Sampling(method=self.sampling_by, **flags)

    def request(self, prompts, question_ids):
        """The Request for a batch: lists of token ids, and the questions' indices."""
        return Request(
            prompts=prompts,
            question_ids=question_ids,
            n_samples=self.n_samples,
            latent_length=self.latent_length,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            sampling=self.sampling(),
        )

    @property
    def sampler_name(self):
        """The samplers with their strengths, such as ``noise-0.8+tokens-1.0``, or ``greedy``.

        Dropout at more than the usual sites names them: ``dropout-0.1-embedding-attention``.
        """
        if self.sampling_by is None:
            return "greedy"
        return "+".join(map(self._with_strength, sampler_names(self.sampling_by)))

    def _with_strength(self, sampler):
        sites = self.off_by_default if sampler == "dropout" else ()
        on = [name.removeprefix("dropout_") for name in sites if getattr(self, name)]
        return "-".join([sampler, str(getattr(self, STRENGTHS[sampler])), *on])

    def _check_thoughts_differ(self, flag, mend="add another sampler, as noise+tokens"):
        """Raises ValueError where the trajectories of a question have the same thoughts."""
        if sampler_names(self.sampling_by) == ["tokens"]:
            fault = "all trajectories of a question would have the same thoughts"
            raise ValueError(f"--sampling_by tokens with {flag}: {fault}; {mend}")

    @property
    def run_name(self):
        """Deterministic: model, data, sampler, and a digest of all that determines the samples."""
        model, data = Path(self.model_id).name, data_name(self.data_path)
        settings = self.result_settings().items()
        named = {k: v for k, v in settings if v or not self._is_later(k, v)}
        named = {k: v for k, v in named.items() if v not in self.unnamed.get(k, ())}
        digest = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:6]
        size = f"n{self.n_samples}-seed{self.seed}-{digest}"
        return f"{model}-{data}-{self.sampler_name}-{size}"

    def _is_later(self, flag, value):
        """Whether a flag that is off is one that older runs lack."""
        names = (*self.off_by_default, "signals")
        return flag in names or (value is None and flag in LATER_FLAGS)

    def _named(self, folder):
        return folder.replace("{sampler}", self.sampler_name)

    def result_settings(self):
        """What determines the samples: a run may be resumed under these settings only."""
        return {key: value for key, value in asdict(self).items() if key not in self.volatile}

    def flags(self):
        """The flags that give this run again, {name: value}.

        Without those that have no value, and without acts: ``overwrite`` would remove the run, and
        ``push_to_hub`` would send it.
        """
        acts, values = ("overwrite", "push_to_hub"), asdict(self).items()
        return {key: value for key, value in values if value is not None and key not in acts}


def report_sizes(report_n, n_samples):
    """The sorted sizes of the pool to report. Raises ValueError when one is impossible."""
    powers_of_four = [4**i for i in range(n_samples.bit_length()) if 4**i < n_samples]
    sizes = sorted(set(report_n or [*powers_of_four, n_samples]))
    if not 1 <= sizes[0] <= sizes[-1] <= n_samples:
        raise ValueError(f"--report_n must lie between 1 and --n_samples {n_samples}")
    return sizes


@dataclass
class InferenceArguments(SamplingArguments):
    """The flags of src.infer_gpt2: sampled inference with majority voting."""

    model_type: str = _model_type("coconut", f"backbone, on GPT-2: {_KNOWN}")
    report_n: list[int] = flag(None, "sizes N to report, default 1 4 16 64 up to n_samples")
    do_sample: bool = flag(True, "false: one deterministic trajectory a question")
    bayesian_vote: bool = flag(False, "true: also vote by the mean probability of each answer")
    signals: bool = flag(False, f"true: {SIGNALS}")
    stop_error: float | None = flag(
        None,
        "stop sampling a question once its vote is decided, with at most this probability, such as "
        "0.05, that the winner is not its most frequent answer; n_samples is then the most",
    )
    dropout_embedding: bool | None = _dropout_embedding("false")
    output_dir: str | None = flag(None, OUTPUT_DIR)
    save_latents: bool = flag(False, "true: also write the thoughts, latents/*.safetensors")

    architecture: ClassVar = "gpt2"
    volatile: ClassVar = (*SamplingArguments.volatile, "report_n", "output_dir")

    def __post_init__(self):
        if self.n_samples is None:
            self.n_samples = 64 if self.do_sample else 1
        self._at_least("n_samples", 1)
        if not self.do_sample and self.n_samples > 1:
            equal = f"--do_sample false gives {self.n_samples} equal trajectories"
            raise ValueError(f"{equal}: leave out --n_samples")
        if not self.do_sample and self.signals:
            raise ValueError("--signals has no effect with --do_sample false: leave it out")
        self._check_stop()
        self._resolve(self.do_sample)
        if self.stop_error is None:
            self.report_n = report_sizes(self.report_n, self.n_samples)
        self.output_dir = self._named(self.output_dir or f"outputs/{self.run_name}")

    def _check_stop(self):
        """Of pools of different sizes only the vote is measured."""
        if self.stop_error is None:
            return
        if not 0 < self.stop_error < 1:
            raise ValueError(f"--stop_error must lie between 0 and 1, not {self.stop_error}")
        for name in ("report_n", "bayesian_vote", "signals", "save_latents"):
            if getattr(self, name):
                raise ValueError(f"--{name} has no effect with --stop_error: leave it out")
        if self.n_samples < 2:
            raise ValueError("--stop_error has no effect with one trajectory: leave it out")


@dataclass
class LlamaInferenceArguments(InferenceArguments):
    """The flags of src.infer_llama."""

    model_type: str = _model_type("colar", f"backbone, on LLaMA: {_KNOWN}")

    architecture: ClassVar = "llama"


@dataclass
class AnnotationArguments(SamplingArguments):
    """The flags of src.annotate_data."""

    save_path: str = flag("outputs/annotated", "folder of the pools")
    name: str | None = flag(None, "the pool's folder in it, default: a name made of the settings")
    n_samples: int = flag(8, "trajectories n a question", aliases=["--num_return_sequences"])
    n_samples_per_step: int = flag(64, "rollouts M from every thought; 0: labels are the outcome")
    dropout_embedding: bool | None = _dropout_embedding("the checkpoint's")
    shard_size: int = flag(64, "questions a file")

    off_by_default: ClassVar = ("dropout_attention",)
    # also with the prefix generation_, as in the release
    generation_flags: ClassVar = (
        *("n_samples", "latent_length", "max_new_tokens", "sampling_by"),
        *(name for names in SAMPLER_FLAGS.values() for name in names),
    )
    volatile: ClassVar = (*SamplingArguments.volatile, "save_path", "name")

    def __post_init__(self):
        for name, least in (("n_samples", 1), ("n_samples_per_step", 0), ("shard_size", 1)):
            self._at_least(name, least)
        self._resolve()
        if self.n_samples_per_step:  # a pool judge reads answers only
            rollouts = f"--n_samples_per_step {self.n_samples_per_step}"
            self._check_thoughts_differ(rollouts, "0 labels the answers alone")
        self.name = self.name or self.run_name

    @property
    def output_dir(self):
        return str(Path(self.save_path) / self.name)


@dataclass
class RewardArguments(SamplingArguments):
    """The flags of src.infer_gpt2_rm: choosing among trajectories by LatentRM, and search."""

    model_type: str = _model_type("coconut", f"backbone, on GPT-2: {_KNOWN}")
    prm_id: str | None = flag(None, "folder or hub id of the LatentRM, default: the backbone's")
    prm_mode: str = flag("best_of_n", "choose from a pool, or guide the thinking", PRM_MODES)
    score_by: str | None = flag(
        None,
        "how a trajectory's rewards make its score, default sum, without a LatentRM last; prod: of "
        "their sigmoids, for a LatentRM trained by BCE",
        SCORES,
    )
    report_n: list[int] = flag(None, "best_of_n: sizes N to report, default 1 4 16 64")
    pool: str | None = flag(None, "best_of_n: score this run of infer_gpt2 --save_latents true")
    bayesian_vote: bool | None = flag(None, "best_of_n: also the Bayesian vote, default true")
    signals: bool | None = flag(None, f"best_of_n: {SIGNALS}, default false")
    num_beams: int | None = flag(
        None, "search: beams B, or subtrees of dvts, default 4; then n_samples is B x C"
    )
    num_beam_candidates: int | None = flag(None, "search: proposals C of each, default 4")
    guide: str | None = flag(
        None,
        "search: what judges a prefix, default the LatentRM; likelihood: log p of the answer that "
        "it leads to; agreement: log of that answer's mean probability under all proposals",
        GUIDES,
    )
    lookahead: str | None = flag(
        None,
        "search: how many thoughts are taken without sampling before a prefix is judged; answer: "
        "all that are left, and the answer; default 0, without a LatentRM answer",
    )
    dropout_embedding: bool | None = _dropout_embedding("false")
    output_dir: str | None = flag(None, OUTPUT_DIR)

    architecture: ClassVar = "gpt2"
    unnamed: ClassVar = {"guide": (None, "rm"), "lookahead": (None, "0")}
    volatile: ClassVar = (*SamplingArguments.volatile, "report_n", "output_dir")
    allowed_with_pool: ClassVar = (
        *(set(volatile) - {"tuned_for"}), "prm_id", "prm_mode", "pool", "score_by",
    )  # fmt: skip

    def __post_init__(self):
        if self.pool is not None and self.prm_mode == "best_of_n":
            self._take_from_pool()
        self.model_id = self.model_id or default_backbone(self.model_type)
        self._resolve_mode()
        self._resolve_guide()
        self._resolve()
        if self.prm_mode == "best_of_n":
            self.report_n = report_sizes(self.report_n, self.n_samples)
        else:
            self._check_thoughts_differ(f"--prm_mode {self.prm_mode}")
        if self.searches and self.dropout_mask == "trajectory":
            raise ValueError("--dropout_mask trajectory: beams draw at every step; leave it out")
        chooser = Path(self.prm_id).name if self.prm_id else self.guide
        default = f"outputs/{chooser}-{self.run_name}"
        self.output_dir = self._named(self.output_dir or default)

    def _resolve_mode(self):
        """Fills in the mode's defaults; a flag of the other mode is an error."""
        other = "best_of_n" if self.searches else SEARCHES[0]
        for name in MODE_DEFAULTS[other]:
            if getattr(self, name) is not None and not (self.searches and name == "n_samples"):
                mode = f"--prm_mode {self.prm_mode}"
                raise ValueError(f"--{name} has no effect with {mode}: leave it out")
        for name, value in MODE_DEFAULTS[self.prm_mode].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
            if type(value) is int:
                self._at_least(name, 1)
        if self.searches:
            self._resolve_budget()

    @property
    def searches(self):
        """Whether the run is a search, not a choice from a pool."""
        return self.prm_mode in SEARCHES

    def _resolve_guide(self):
        """Fills in what depends on the guide; what has no effect with it is an error."""
        by_answer = self.guide not in (None, "rm")
        if not by_answer:
            self.prm_id = self.prm_id or default_reward_model(self.model_type, self.model_id)
        elif self.prm_id is not None:
            raise ValueError(f"--prm_id has no effect with --guide {self.guide}: leave it out")
        if self.searches:
            self.lookahead = self.lookahead or (ANSWER if by_answer else "0")
            self._check_lookahead(by_answer)
        self.score_by = self.score_by or ("last" if by_answer else "sum")
        if self.score_by == "prod" and not (self.prm_id and gives_probabilities(self.prm_id)):
            judge = self.prm_id or f"--guide {self.guide}"
            needed = "that needs a LatentRM whose recipe.yaml has loss bce without cumulative"
            raise ValueError(f"--score_by prod: {judge} gives no probabilities; {needed}")

    def _check_lookahead(self, by_answer):
        if self.lookahead != ANSWER:
            if not self.lookahead.isdecimal():
                form = f"a number of thoughts or {ANSWER}"
                raise ValueError(f"--lookahead must be {form}, not {self.lookahead!r}")
            self.lookahead = str(int(self.lookahead))
        elif not by_answer and not rewards_answers(self.prm_id):
            mend = "does not score answers; choose a number of thoughts"
            raise ValueError(f"--lookahead {ANSWER}: {self.prm_id} {mend}")
        if by_answer and self.lookahead != ANSWER:
            raise ValueError(f"--guide {self.guide} judges answers: leave out --lookahead")

    def plan(self):
        """The SearchPlan of these flags."""
        lookahead = ANSWER if self.lookahead == ANSWER else int(self.lookahead)
        beams = (self.num_beams, self.num_beam_candidates)
        return SearchPlan(*beams, self.prm_mode, self.score_by, lookahead)

    def _resolve_budget(self):
        """n_samples of a search is B x C. The release says 1, the one answer it returns."""
        budget = self.num_beams * self.num_beam_candidates
        if self.n_samples not in (None, 1, budget):
            fault = f"--n_samples {self.n_samples} (--num_return_sequences): the search makes"
            size = f"num_beams x num_beam_candidates = {budget} trajectories a question"
            raise ValueError(f"{fault} {size}; leave it out")
        self.n_samples = budget

    def flags(self):
        """Also without what follows from the pool or the beams, which can't be given with them."""
        flags = super().flags()
        if self.pool is not None:
            return {key: flags[key] for key in flags if key in self.allowed_with_pool}
        if self.searches:
            del flags["n_samples"]
        return flags

    def _take_from_pool(self):
        """The settings under which the pool was sampled; a flag that contradicts it is an error."""
        defaults = {field.name: field.default for field in fields(self)}
        for name, default in defaults.items():
            if name not in self.allowed_with_pool and getattr(self, name) != default:
                raise ValueError(f"--{name} has no effect with --pool: leave it out")
        try:
            text = (Path(self.pool) / "config.json").read_text(encoding="utf-8")
            sampled = _typed_settings(json.loads(text)["settings"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError):
            mend = "sample one, src.infer_gpt2 --save_latents true"
            raise ValueError(f"--pool {self.pool}: no run there; {mend}") from None
        for name in defaults.keys() & sampled.keys():
            setattr(self, name, sampled[name])
        if not sampled["do_sample"]:
            fault = "one greedy trajectory a question, nothing to choose from"
            raise ValueError(f"--pool {self.pool}: {fault}")
        if not sampled["save_latents"]:
            fault = "sampled without --save_latents true; sample it again"
            raise ValueError(f"--pool {self.pool}: {fault}")


def _typed_settings(settings):
    """The settings of a run of src.infer_gpt2. Raises an error where they are not whole."""
    cls = InferenceArguments
    kinds, settings = get_type_hints(cls), current_names(settings)
    names = [field.name for field in fields(cls) if field.name not in cls.volatile]
    return {name: typed(settings[name], kinds[name], name) for name in names}


@dataclass
class LlamaRewardArguments(RewardArguments):
    """The flags of src.infer_llama_rm."""

    model_type: str = _model_type("colar", f"backbone, on LLaMA: {_KNOWN}")

    architecture: ClassVar = "llama"


@dataclass
class TuningArguments:
    """The flags of src.tune_sampler, which chooses the strengths of samplers.

    Raises ValueError or UserError on impossible values.
    """

    model_type: str = flag("coconut", f"backbone: {_KNOWN}", BACKBONES)
    model_id: str | None = flag(None, "folder of the checkpoint, default: as in src.infer_gpt2")
    data_path: str = flag("data/tiny_valid.json", "JSON list of question, steps, answer")
    limit: int | None = flag(None, "only the first so many questions")
    n_samples: int = flag(64, "trajectories N a question, for which the strengths are chosen")
    samplers: list[str] = flag(
        list(PAPER_SAMPLERS), "whose strengths are chosen, one sampler at a time", SAMPLERS
    )
    dropout_ps: list[float] | None = flag(None, "rates, default: around the checkpoint's")
    noise_stds: list[float] | None = flag(None, "sigmas, default: around the checkpoint's")
    svp_alphas: list[float] | None = flag(None, "alphas, default: around the checkpoint's")
    weight_noise_stds: list[float] | None = flag(None, "sigmas, default: around the checkpoint's")
    temperatures: list[float] | None = flag(None, "default: around the checkpoint's")
    seeds: list[int] = flag([42, 43], "measures are means over these seeds")
    batch_size: int = flag(16, "questions a batch")
    nproc: int | None = flag(None, PROCESSES)
    output_dir: str | None = flag(None, "default: outputs/tune_<name of the checkpoint>")

    def __post_init__(self):
        self.model_id = self.model_id or default_backbone(self.model_type)
        if not Path(self.model_id).is_dir():
            mend = f"fetch it first: hf download {self.model_id} --local-dir FOLDER"
            raise UserError(f"--model_id {self.model_id}: no folder to write to; {mend}")
        if self.n_samples < 2:
            raise ValueError(f"--n_samples must be at least 2, not {self.n_samples}")
        for sampler, strength in STRENGTHS.items():
            name, values = f"{strength}s", getattr(self, f"{strength}s")
            if values is not None and sampler not in self.samplers:
                raise ValueError(f"--{name} has no effect without {sampler} in --samplers")
            if values is not None and len(set(values)) < 3:
                raise ValueError(f"--{name} needs at least 3 values to choose from")
        self.nproc = self.nproc or default_processes()
        self.output_dir = self.output_dir or f"outputs/tune_{Path(self.model_id).name}"


@dataclass
class ReproduceArguments:
    """The flags of src.reproduce, which tests the paper's claims.

    Raises ValueError on impossible combinations.
    """

    model: str = flag("coconut", f"the backbone: {_KNOWN}", BACKBONES)
    profile: str = flag("tiny", "the bundled models, or the published ones", ("tiny", "paper"))
    full: bool = flag(False, "tiny: all questions, 5 seeds, longer trainings")
    nproc: int | None = flag(None, PROCESSES)
    output_dir: str | None = flag(None, "default: outputs/reproduce_<profile or full>_<model>")

    def __post_init__(self):
        if self.full and self.profile == "paper":
            raise ValueError("--full has no effect with --profile paper: leave it out")
        self.nproc = self.nproc or default_processes()
        size = "full" if self.full else self.profile
        self.output_dir = self.output_dir or f"outputs/reproduce_{size}_{self.model}"
