"""The commands of src that run a model: from a command line to a finished run."""

from dataclasses import dataclass

from src.models.loading import Loader, bundled_backbone
from src.models.precision import slowness
from src.runs.annotate import Annotation
from src.runs.arguments import (
    AnnotationArguments,
    InferenceArguments,
    LlamaInferenceArguments,
    LlamaRewardArguments,
    RewardArguments,
)
from src.runs.evaluate import Evaluation, RewardEvaluation
from utils.cli import parse_flags
from utils.errors import warn
from utils.processes import end_processes, start_processes, where


@dataclass(frozen=True)
class Command:
    """arguments: the dataclass of its command line; job: the src.runs.job.Job that it runs."""

    arguments: type
    job: type


COMMANDS = {
    "src.infer_gpt2": Command(InferenceArguments, Evaluation),
    "src.infer_llama": Command(LlamaInferenceArguments, Evaluation),
    "src.infer_gpt2_rm": Command(RewardArguments, RewardEvaluation),
    "src.infer_llama_rm": Command(LlamaRewardArguments, RewardEvaluation),
    "src.annotate_data": Command(AnnotationArguments, Annotation),
}


def run_command(name, description):
    """Runs one of COMMANDS, from its command line to its report."""
    arguments = parse_flags(COMMANDS[name].arguments, name, description)
    processes = start_processes()
    job = COMMANDS[name].job(arguments, processes, Loader(processes.device))
    introduce(job)
    metrics = job.complete()
    if processes.is_main_process:
        job.report(metrics)
    end_processes()


def introduce(job):
    """Prints which model runs on what; warns of a number format that is slow here."""
    arguments, processes = job.arguments, job.processes
    if not processes.is_main_process:
        return
    bundled = bundled_backbone(arguments.model_type)
    note = " (bundled)" if arguments.model_id == str(bundled) else ""
    print(
        f"{arguments.model_type} {arguments.model_id}{note}, {arguments.sampler_name}, on "
        f"{len(job.rows)} questions of {arguments.data_path}; {arguments.model_dtype} on "
        f"{where(processes.device, processes.num_processes)}",
        flush=True,
    )
    slow = slowness(arguments.model_dtype)
    if slow and not job.finished:
        warn(f"--model_dtype {slow}")
