"""Samples latent trajectories with a GPT-2 backbone and votes: python -m src.infer_gpt2 --help"""

from src.inference.aggregation import measure
from src.inference.folder import identity_of, start_processes
from src.inference.methods import Sampler
from src.inference.report import print_report
from src.inference.runner import Run
from src.inference.settings import InferenceSettings
from src.models.loading import load_backbone
from utils.cli import parse_flags
from utils.data import load_dataset
from utils.errors import reports_user_errors


@reports_user_errors
def main():
    settings = parse_flags(InferenceSettings, "src.infer_gpt2", __doc__)
    processes = start_processes()
    rows = load_dataset(settings.data_path)[: settings.limit]
    run = Run(settings, processes, rows, identity_of(settings, rows))
    work = {}
    if not run.finished:
        place = (settings.model_dtype, processes.device)
        backbone = load_backbone(settings.model_type, settings.model_id, *place)
        work = run.answer(Sampler(settings, rows, *backbone))
    metrics = run.finish(work, lambda records: measure(records, settings.report_n))
    if metrics:
        print_report(metrics, run.folder)


if __name__ == "__main__":
    main()
