"""Runs written by hand, and the data of figures read back; skips where there is no matplotlib."""

import json

import pytest
import safetensors.torch

from src.runs.finished_runs import FinishedRun
from src.search.voting import measure
from utils.records import latents_path

colors = pytest.importorskip("matplotlib.colors")

SETTINGS = {
    "model_id": "checkpoints/some-model",
    "data_path": "data/some_test.json",
    "model_dtype": "float32",
    "limit": None,
    "latent_length": 3,
    "max_new_tokens": 4,
    "seed": 42,
    "save_latents": False,
}


def noise(sigma, **settings):
    """The settings of a pool by noise."""
    return SETTINGS | {"sampling_by": "noise", "noise_std": sigma} | settings


def dropout(p, **settings):
    """The settings of a pool by dropout."""
    return SETTINGS | {"sampling_by": "dropout", "dropout_p": p} | settings


def choosing(sigma, **settings):
    """The settings of a run that chooses by a reward model from a pool by noise."""
    choice = {"prm_mode": "best_of_n", "prm_id": "some-rm", "score_by": "sum"}
    return noise(sigma, **choice) | settings


GREEDY = SETTINGS | {"sampling_by": None}


def record(idx, predictions, gold=1.0, **fields):
    """A record of samples.jsonl."""
    right = [p == gold for p in predictions]
    return {"idx": idx, "answer": str(gold), "predictions": predictions, "correct": right} | fields


def write_run(folder, records, settings, latents=None):
    """Writes a finished run and returns it. latents: {idx: {key: tensor}} of its thoughts."""
    folder.mkdir(parents=True)
    size = len(records[0]["predictions"])
    score_by = settings.get("score_by", "sum")
    metrics = {"questions": len(records), "speed": {}} | measure(records, [1, size], score_by)
    config = {"settings": settings, "model_sha256": "m", "data_sha256": "d"}
    lines = "".join(json.dumps(row) + "\n" for row in records)
    (folder / "samples.jsonl").write_text(lines)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "config.json").write_text(json.dumps(config))
    for idx, tensors in (latents or {}).items():
        path = latents_path(folder, idx)
        path.parent.mkdir(exist_ok=True)
        safetensors.torch.save_file(tensors, path)
    return FinishedRun(folder)


def colored(axis, color, style="-"):
    """The (x, y) of the one line of a colour and style in an axis."""
    lines = [x for x in axis.lines if (x.get_color(), x.get_linestyle()) == (color, style)]
    (line,) = lines
    return line.get_xdata(), line.get_ydata()


def band(axis, color):
    """The {(x, y)} of the corners of all bands of a colour."""
    shade = colors.to_rgb(color)
    filled = [x for x in axis.collections if len(x.get_facecolor())]  # error bars are not
    bands = [x for x in filled if tuple(x.get_facecolor()[0][:3]) == shade]
    return {tuple(corner) for x in bands for corner in x.get_paths()[0].vertices.tolist()}
