"""What the commands of src share: from a command line to a finished run."""

from dataclasses import dataclass

from src.inference.aggregation import measure, measure_beams
from src.inference.annotation import Annotation
from src.inference.folder import identity_of
from src.inference.loader import Loader
from src.inference.methods import BeamSearch, BestOfN, Sampler, SavedPool, read_pool
from src.inference.report import print_report, print_reward_report
from src.inference.runner import Run
from src.inference.settings import (
    AnnotationSettings,
    InferenceSettings,
    LlamaInferenceSettings,
    LlamaRewardSettings,
    RewardSettings,
)
from src.models.loading import bundled_backbone, checkpoint_files
from src.models.precision import slowness
from utils.cli import parse_flags
from utils.data import load_dataset
from utils.errors import warn
from utils.files import sha256
from utils.processes import end_processes, start_processes, where

RECORDS_FORMAT = 2  # of samples.jsonl
METHODS = {"best_of_n": BestOfN, "beam_search": BeamSearch}


class Inference:
    """A run that samples and votes. Nothing is written before ``complete``.

    Raises UserError when data, model or folder can't be used.
    """

    def __init__(self, settings, processes, loader):
        self.settings, self.processes, self.loader = settings, processes, loader
        self.rows = load_dataset(settings.data_path)[: settings.limit]
        self.run = Run(settings, processes, self.rows, self._identity())
        self.folder = self.run.folder

    def _identity(self):
        return identity_of(self.settings, self.rows) | {"records_format": RECORDS_FORMAT}

    @property
    def finished(self):
        return self.run.finished

    @property
    def trajectories(self):
        """How many are still to be sampled, by all processes together."""
        return (len(self.rows) - len(self.run.done)) * self.settings.n_samples

    def prepare(self):
        """How a batch of questions is answered; loads the models and checks the questions."""
        return Sampler(self.settings, self.rows, *self.loader.backbone(self.settings))

    def complete(self):
        """Answers what is left; returns the metrics, on the first process."""
        method = None if self.finished else self.prepare()
        if method:
            self.run.answer(method)
        return self.run.finish(method, self._measure)

    def _measure(self, records):
        return measure(records, self.settings.report_n)

    def report(self, metrics):
        print_report(metrics, self.folder)


class RewardInference(Inference):
    """A run that chooses by LatentRM."""

    def _identity(self):
        identity = super()._identity()
        identity["prm_sha256"] = sha256(checkpoint_files("rm", self.settings.prm_id, "--prm_id"))
        pool = self.settings.pool
        self.pool = None if pool is None else read_pool(pool, identity)
        return identity

    def prepare(self):
        settings, reward_model = self.settings, self.loader.reward_model(self.settings)
        if self.pool is not None:
            return SavedPool(settings, self.pool, reward_model)
        backbone = self.loader.backbone(settings)
        return METHODS[settings.prm_mode](settings, self.rows, *backbone, reward_model)

    def _measure(self, records):
        if self.settings.prm_mode == "beam_search":
            return measure_beams(records, self.settings.num_beams)
        return measure(records, self.settings.report_n, self.settings.score_by)

    def report(self, metrics):
        print_reward_report(metrics, self.folder)


@dataclass(frozen=True)
class Command:
    """flags: the dataclass of its command line; job: what it does, a class such as Inference."""

    flags: type
    job: type


COMMANDS = {
    "src.infer_gpt2": Command(InferenceSettings, Inference),
    "src.infer_llama": Command(LlamaInferenceSettings, Inference),
    "src.infer_gpt2_rm": Command(RewardSettings, RewardInference),
    "src.infer_llama_rm": Command(LlamaRewardSettings, RewardInference),
    "src.annotate_data": Command(AnnotationSettings, Annotation),
}


def run_command(name, description):
    """One of COMMANDS, from its command line to its report."""
    settings = parse_flags(COMMANDS[name].flags, name, description)
    processes = start_processes()
    job = COMMANDS[name].job(settings, processes, Loader(processes.device))
    introduce(job)
    metrics = job.complete()
    if processes.is_main_process:
        job.report(metrics)
    end_processes()


def introduce(job):
    """Says on the first line which model runs on what; warns of a number format that is slow here."""
    settings, processes = job.settings, job.processes
    if not processes.is_main_process:
        return
    bundled = " (bundled)" if settings.model_id == str(bundled_backbone(settings.model_type)) else ""
    print(
        f"{settings.model_type} {settings.model_id}{bundled}, {settings.sampler_name}, on "
        f"{len(job.rows)} questions of {settings.data_path}; {settings.model_dtype} on "
        f"{where(processes.device, processes.num_processes)}",
        flush=True,
    )
    slow = slowness(settings.model_dtype)
    if slow and not job.finished:
        warn(f"--model_dtype {slow}")
