"""Chooses among latent trajectories by LatentRM: python -m src.infer_gpt2_rm --help"""

from src.inference.aggregation import measure, measure_beams
from src.inference.folder import identity_of, start_processes
from src.inference.methods import BeamSearch, BestOfN, SavedPool, read_pool
from src.inference.report import print_reward_report
from src.inference.runner import Run
from src.inference.settings import RewardSettings
from src.models.loading import checkpoint_files, load_backbone, load_reward_model
from utils.cli import parse_flags
from utils.data import load_dataset
from utils.errors import reports_user_errors
from utils.files import sha256

METHODS = {"best_of_n": BestOfN, "beam_search": BeamSearch}


def make_method(settings, rows, pool, device):
    """The method of --prm_mode, or the one that scores --pool, with the models that it needs."""
    backbone = load_backbone(settings.model_type, settings.model_id, settings.model_dtype, device)
    reward_model = load_reward_model(settings.prm_id, *backbone, settings.model_dtype, device)
    if pool is not None:
        return SavedPool(settings, pool, reward_model)
    return METHODS[settings.prm_mode](settings, rows, *backbone, reward_model)


@reports_user_errors
def main():
    settings = parse_flags(RewardSettings, "src.infer_gpt2_rm", __doc__)
    processes = start_processes()
    rows = load_dataset(settings.data_path)[: settings.limit]
    identity = identity_of(settings, rows)
    identity["prm_sha256"] = sha256(checkpoint_files("rm", settings.prm_id, "--prm_id"))
    pool = None if settings.pool is None else read_pool(settings.pool, identity)
    run = Run(settings, processes, rows, identity)
    work = {}
    if not run.finished:
        work = run.answer(make_method(settings, rows, pool, processes.device))
    if settings.prm_mode == "beam_search":
        metrics = run.finish(work, lambda found: measure_beams(found, settings.num_beams))
    else:
        metrics = run.finish(work, lambda found: measure(found, settings.report_n))
    if metrics:
        print_reward_report(metrics, run.folder)


if __name__ == "__main__":
    main()
