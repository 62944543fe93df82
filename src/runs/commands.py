"""The commands of src that run a model: from a command line to a finished run."""

from dataclasses import dataclass

from src.models.loading import Loader
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
from utils.processes import end_processes, start_processes


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
    job.introduce()
    metrics = job.complete()
    if processes.is_main_process:
        job.report(metrics)
    end_processes()  # the others need not wait for an upload
    job.push()
