"""What src.reproduce runs: models, benchmarks, sizes."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from src.models.loading import bundled_backbone, checkpoint_defaults, checkpoint_folder
from src.runs.finished_runs import read_json
from src.runs.launch import run
from src.sampling.samplers import PAPER_SAMPLERS, STRENGTHS
from utils.errors import UserError
from utils.files import write_json

SEEDS = (42, 43, 44)
MORE_SEEDS = (45, 46)
SWEEP_FACTORS = (0.25, 0.5, 1, 2, 3)  # times the strength that was chosen for coverage
SIZES = (1, 2, 4, 8, 16, 32, 64)  # N; all come from one pool of the largest
BEAMS = (4, 8)  # beams, proposals of each: the budget of best-of-32
_LATER = ("judge",)  # keys that folders of older commits lack
_VOLATILE = ("folder", "nproc", "batch_size")  # of a Setting, without effect on results


@dataclass(frozen=True)
class Setting:
    """The models, data and sizes of one run of src.reproduce.

    benchmarks: {the paper's name: file}. limit: questions of each, the first ones; None: all.
    reward_model: the one that is shipped or published. judge: the pool judge that is shipped, None
    where there is none. sampler: the kind that the pools for training and choosing are sampled by.
    train_questions, rollouts: size of the annotated pool. recipe: the YAML file from which the
    reward models of the claims are trained, one of each kind for every seed.
    """

    model_type: str
    model_id: str
    reward_model: str
    judge: str | None
    benchmarks: dict
    limit: int | None
    seeds: tuple
    sampler: str
    train_data: str
    valid_data: str
    train_questions: int | None
    valid_questions: int | None
    rollouts: int
    recipe: str
    folder: Path
    nproc: int
    batch_size: int = 16

    @property
    def chosen(self):
        """{sampler: the strength that the checkpoint has for coverage}."""
        defaults = checkpoint_defaults(self.model_type, self.model_id)
        return {sampler: getattr(defaults, STRENGTHS[sampler]) for sampler in PAPER_SAMPLERS}

    def grid(self, sampler):
        """The strengths of a sampler, from the weakest to the strongest."""
        most = 0.95 if sampler == "dropout" else math.inf  # a rate is below 1
        values = (factor * self.chosen[sampler] for factor in SWEEP_FACTORS)
        return [round(min(value, most), 4) for value in values]

    def contents(self):
        """What determines the results, as JSON, the strengths of both samplers included."""
        values = {key: value for key, value in vars(self).items() if key not in _VOLATILE}
        values["strengths"] = {sampler: self.grid(sampler) for sampler in self.chosen}
        return json.loads(json.dumps(values))


def setting_of(arguments):
    """The Setting of the flags of src.reproduce."""
    make = paper_setting if arguments.profile == "paper" else tiny_setting
    setting = make(arguments.model, Path(arguments.output_dir), arguments.nproc)
    return full_setting(setting) if arguments.full else setting


def tiny_setting(model_type, folder, nproc):
    """The bundled models on the bundled benchmarks, at most 500 questions of each."""
    return Setting(
        model_type=model_type,
        model_id=str(bundled_backbone(model_type)),
        reward_model=f"checkpoints/tiny-latentRM-{model_type}",
        judge=f"checkpoints/tiny-judge-{model_type}",
        benchmarks={
            "Test": "data/tiny_test.json",
            "Hard": "data/tiny_hard.json",
            "MultiArith": "data/tiny_multi.json",
        },
        limit=500,
        seeds=SEEDS,
        sampler="noise",
        train_data="data/tiny_train.json",
        valid_data="data/tiny_valid.json",
        train_questions=3000,
        valid_questions=150,
        rollouts=4,
        recipe="training_args/train_tiny_coconut_small.yaml",
        folder=folder,
        nproc=nproc,
    )


def full_setting(setting):
    """The same with all questions, more seeds, and longer trainings."""
    return replace(
        setting,
        limit=None,
        seeds=SEEDS + MORE_SEEDS,
        train_questions=4000,
        valid_questions=None,
        recipe="training_args/train_tiny_coconut_paper.yaml",
    )


def paper_setting(model_type, folder, nproc):
    """The published checkpoint on the paper's benchmarks, with the paper's annotation."""
    published = "ModalityDance/latent-tts-rm"
    return Setting(
        model_type=model_type,
        model_id=f"ModalityDance/latent-tts-{model_type}",
        reward_model=published if model_type == "coconut" else f"outputs/latentRM-{model_type}",
        judge=None,
        benchmarks={
            "Test": "data/gsm_test.json",
            "Hard": "data/gsm_hard.json",
            "MultiArith": "data/multiarith.json",
        },
        limit=None,
        seeds=SEEDS,
        sampler="dropout",
        train_data="data/gsm_train.json",
        valid_data="data/gsm_valid.json",
        train_questions=None,
        valid_questions=None,
        rollouts=64,
        recipe=f"training_args/train_{model_type}.yaml",
        folder=folder,
        nproc=nproc,
        batch_size=8,
    )


def prepare(setting):
    """Makes the bundled training problems, and checks data, models and the folder.

    The folder keeps the setting, setting.json. Raises UserError where something is missing, or
    where the folder was begun with another setting.
    """
    bundled = setting.model_id == str(bundled_backbone(setting.model_type))
    if bundled and not Path(setting.train_data).exists():
        run(["-m", "src.prepare_data", "tiny", "--train", "120000"])
    for path in (*setting.benchmarks.values(), setting.train_data, setting.valid_data):
        if not Path(path).is_file():
            which = "tiny" if bundled else "paper --train"
            raise UserError(f"{path}: no such data file; python -m src.prepare_data {which}")
    checkpoint_folder(setting.model_type, setting.model_id)
    for reward_model in filter(None, (setting.reward_model, setting.judge)):
        checkpoint_folder("rm", reward_model)
    path, contents = setting.folder / "setting.json", setting.contents()
    begun = read_json(path) if path.exists() else contents
    # A folder of an older version lacks later keys, and the runs that they are for.
    begun = {key: contents[key] for key in _LATER} | begun
    other = [key for key in contents if begun.get(key) != contents[key]]
    if other:
        fault = f"{setting.folder} was begun with another {other[0]}"
        raise UserError(f"{fault}; name another --output_dir or remove it")
    write_json(path, contents)
