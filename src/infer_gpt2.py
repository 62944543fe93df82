"""Samples latent trajectories with a GPT-2 backbone and votes: python -m src.infer_gpt2 --help"""

from src.inference.report import print_report
from src.inference.runner import Run, Speed, start_processes
from src.inference.settings import InferenceSettings
from src.models.loading import load_backbone
from utils.cli import parse_flags
from utils.errors import reports_user_errors


@reports_user_errors
def main():
    settings = parse_flags(InferenceSettings, "src.infer_gpt2", __doc__)
    processes = start_processes()
    run = Run(settings, processes)
    speed = Speed()
    if not run.finished:
        place = (settings.model_dtype, processes.device)
        speed = run.sample(*load_backbone(settings.model_type, settings.model_id, *place))
    metrics = run.finish(speed)
    if metrics:
        print_report(metrics, run.folder)


if __name__ == "__main__":
    main()
