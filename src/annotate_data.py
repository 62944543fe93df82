"""Labels latent trajectories by stochastic rollouts: python -m src.annotate_data --help"""

from src.inference.annotation import Annotation
from src.inference.folder import end_processes, start_processes
from src.inference.settings import AnnotationSettings
from src.models.loading import load_backbone
from utils.cli import parse_flags
from utils.errors import reports_user_errors


@reports_user_errors
def main():
    settings = parse_flags(AnnotationSettings, "src.annotate_data", __doc__)
    processes = start_processes()
    annotation = Annotation(settings, processes)
    if not annotation.finished:
        place = (settings.model_dtype, processes.device)
        annotation.run(*load_backbone(settings.model_type, settings.model_id, *place))
    if processes.is_main_process:
        print(f"annotated {len(annotation.rows)} questions; files in {annotation.folder}")
    end_processes(processes)


if __name__ == "__main__":
    main()
