"""The finished runs below a folder, as src/runs/tables.py reads them."""

import json
from pathlib import Path

from src.runs.run_folder import current_names
from src.sampling.samplers import EXTRA_DROPOUTS, STRENGTHS
from src.search.beam_search import SEARCHES
from utils import records
from utils.datasets import data_name
from utils.errors import UserError, warn

# Settings in which beams may differ from the pool that they are compared with.
_CHOICE = {
    "prm_id", "prm_mode", "n_samples", "pool", "bayesian_vote", "num_beams", "num_beam_candidates",
    "score_by", "signals", "guide", "lookahead",
}  # fmt: skip
# Settings that a run shares with the greedy run that it is compared with.
_SAME_MODEL = ("model_dtype", "limit", "latent_length", "max_new_tokens")


class FinishedRun:
    """config.json, metrics.json and records of one run.

    columns: what a table says of the run itself. beams: whether it is a search. model_key: what it
    shares with a greedy run over the same questions. Raises UserError when a file is damaged or not
    of this version.
    """

    def __init__(self, folder):
        self.folder = folder
        self.config, self.metrics = (
            read_json(folder / "config.json"),
            read_json(folder / "metrics.json"),
        )
        self.settings = current_names(self.config["settings"])
        self.chooses = "prm_mode" in self.settings
        self.beams = self.settings.get("prm_mode") in SEARCHES
        self.records = records.read(self.folder)
        try:
            self.columns, self.model_key = self._columns(), self._model_key()
        except KeyError as error:
            fault = f"{folder}/config.json: lacks {error}"
            raise UserError(f"{fault}; remove the folder or run again") from None
        if len(self.records) != self.metrics["questions"]:
            raise UserError(f"{folder}/{records.NAME}: records are missing; run its command again")

    @property
    def stopped(self):
        """Whether its pools stopped when they were decided, so that they differ in size."""
        return self.settings.get("stop_error") is not None

    @property
    def greedy(self):
        return self.settings.get("sampling_by") is None

    def _columns(self):
        settings = self.settings
        method = settings["sampling_by"]
        names = method.split("+") if method else []
        strengths = {STRENGTHS[sampler]: settings[STRENGTHS[sampler]] for sampler in names}
        sites = [name.removeprefix("dropout_") for name in EXTRA_DROPOUTS if settings[name]]
        return {
            "model": Path(settings["model_id"]).name,
            "benchmark": data_name(settings["data_path"]),
            "questions": self.metrics["questions"],
            "sampler": method or "greedy",
            "dropout_p": strengths.pop("dropout_p", None),
            "extra_dropout": " + ".join(sites) or None,
            "noise_std": strengths.pop("noise_std", None),
            "seed": settings["seed"],
            "folder": str(self.folder),
            **strengths,
        }

    def _model_key(self):
        digests = (self.config["model_sha256"], self.config["data_sha256"])
        return (*digests, *(self.settings[key] for key in _SAME_MODEL))

    def pool_key(self):
        """What beams share with a pool of the same questions and sampler."""
        return tuple(value for key, value in sorted(self.settings.items()) if key not in _CHOICE)


def read_json(path):
    """The content of a run's json file. Raises UserError when it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path}: damaged; remove the folder or run its command again") from None


def finished_runs(folder):
    """The FinishedRuns below a folder; other things there, such as checkpoints, are ignored.

    A damaged run gives a warning. Raises UserError when there is no run, or only damaged ones.
    """
    runs, faults = [], []
    for path in sorted(Path(folder).rglob("metrics.json")):
        try:
            if _is_run(path):
                runs.append(FinishedRun(path.parent))
        except UserError as error:
            faults.append(error)
    if not runs:
        raise (
            faults[0] if faults else UserError(f"{folder}: no finished run below it (metrics.json)")
        )
    for fault in faults:
        warn(str(fault))
    return runs


def _is_run(path):
    """Whether a metrics.json is that of a run; a checkpoint has files of the same names."""
    config_path = path.parent / "config.json"
    if not config_path.is_file():
        return False
    config, metrics = read_json(config_path), read_json(path)
    both = isinstance(config, dict) and isinstance(metrics, dict)
    return both and isinstance(config.get("settings"), dict) and "by_n" in metrics
