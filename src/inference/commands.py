"""What the commands of src share: from settings to a finished run."""

from src.inference.aggregation import measure, measure_beams
from src.inference.folder import end_processes, identity_of, start_processes
from src.inference.methods import BeamSearch, BestOfN, Sampler, SavedPool, read_pool
from src.inference.report import print_report, print_reward_report
from src.inference.runner import Run
from src.models.loading import checkpoint_files, load_backbone, load_reward_model
from utils.data import load_dataset
from utils.files import sha256

METHODS = {"best_of_n": BestOfN, "beam_search": BeamSearch}


def infer(settings):
    """Samples and votes, for InferenceSettings."""
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
    end_processes(processes)


def infer_with_reward(settings):
    """Chooses by LatentRM, for RewardSettings."""
    processes = start_processes()
    rows = load_dataset(settings.data_path)[: settings.limit]
    identity = identity_of(settings, rows)
    identity["prm_sha256"] = sha256(checkpoint_files("rm", settings.prm_id, "--prm_id"))
    pool = None if settings.pool is None else read_pool(settings.pool, identity)
    run = Run(settings, processes, rows, identity)
    work = {}
    if not run.finished:
        work = run.answer(_method(settings, rows, pool, processes.device))
    if settings.prm_mode == "beam_search":
        metrics = run.finish(work, lambda found: measure_beams(found, settings.num_beams))
    else:
        metrics = run.finish(work, lambda found: measure(found, settings.report_n, settings.score_by))
    if metrics:
        print_reward_report(metrics, run.folder)
    end_processes(processes)


def _method(settings, rows, pool, device):
    """The method of --prm_mode, or the one that scores --pool, with the models that it needs."""
    backbone = load_backbone(settings.model_type, settings.model_id, settings.model_dtype, device)
    reward_model = load_reward_model(settings.prm_id, *backbone, settings.model_dtype, device)
    if pool is not None:
        return SavedPool(settings, pool, reward_model)
    return METHODS[settings.prm_mode](settings, rows, *backbone, reward_model)
