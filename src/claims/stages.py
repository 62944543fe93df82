"""The work of src.reproduce in stages: sample, annotate, train, choose. Each resumes."""

import time
from pathlib import Path

import yaml

from src.claims.alone import answers_alone
from src.models.loading import checkpoint_files
from src.runs.finished_runs import read_json
from src.runs.launch import run, run_cells
from utils import records
from utils.errors import UserError
from utils.files import sha256, write_json, write_text
from utils.progress import duration


def run_stages(plan):
    """Runs all that is not finished; returns {stage: seconds of all sessions}."""
    path = plan.folder / "seconds.json"
    seconds = read_json(path) if path.exists() else {}
    for number, (name, stage) in enumerate(STAGES.items(), 1):
        print(f"[{number}/{len(STAGES)}] {name}", flush=True)
        start = time.monotonic()
        try:
            stage(plan)
        finally:  # of an interrupted session too
            taken = time.monotonic() - start
            seconds[name] = round(seconds.get(name, 0) + taken)
            write_json(path, seconds)
        print(f"[{number}/{len(STAGES)}] {name}: {duration(taken)}", flush=True)
    return seconds


def sample(plan):
    lines = plan.greedy_cells() + plan.pool_cells() + plan.map_cells()
    run_cells(lines, plan.cells("sampling"), plan.setting.nproc)


def sample_in_other_batches(plan):
    run_cells(plan.other_batch_cells(), plan.cells("other_batches"), 1)


def annotate(plan):
    run_cells(plan.annotation_cells(), plan.cells("annotation"), plan.setting.nproc)


def train(plan):
    """Trains the reward models that are not finished, one after the other."""
    recipes = plan.recipes()
    for number, (path, values) in enumerate(recipes.items(), 1):
        text, folder = yaml.safe_dump(values, sort_keys=False), Path(values["output_dir"])
        finished = (folder / "model.safetensors").is_file()
        if finished and (folder / "recipe.yaml").read_text(encoding="utf-8") != text:
            raise UserError(f"{folder}: was trained by another recipe; remove it")
        if not finished:
            print(f"reward model {number} of {len(recipes)}: {path.stem}", flush=True)
            write_text(path, text)
            launcher = "accelerate.commands.accelerate_cli"
            run(["-m", launcher, "launch", "--quiet", "-m", "src.train", str(path)])


def choose(plan):
    lines = plan.chosen_cells() + plan.beam_cells()
    run_cells(lines, plan.cells("choosing"), plan.setting.nproc)


def answer_alone(plan):
    """Writes what the shipped reward model answers by itself, a file a seed."""
    setting = plan.setting
    for seed in setting.seeds:
        pools = {name: plan.scored_pool(name, seed) for name in setting.benchmarks}
        samples = [folder / records.NAME for folder in pools.values()]
        made_from = sha256([*checkpoint_files("rm", setting.reward_model), *samples])
        path = plan.alone(seed)
        if not path.is_file() or read_json(path).get("made_from") != made_from:
            right = answers_alone(setting.reward_model, pools)
            write_json(path, {"made_from": made_from} | right)


STAGES = {
    "sampling": sample,
    "the same samples in other batches": sample_in_other_batches,
    "annotation": annotate,
    "training of reward models": train,
    "choosing": choose,
    "the shipped reward model by itself": answer_alone,
}
