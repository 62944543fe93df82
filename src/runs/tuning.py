"""The choice of a sampler's strength: one for coverage, one for the majority vote."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.models.loading import GENERATION, checkpoint_defaults
from src.runs.figure_data import groups_of, interval
from src.runs.finished_runs import read_json
from src.runs.launch import command_line, sampling_command
from utils.errors import warn
from utils.files import write_json
from utils.records import gold_of

STRENGTHS = {"dropout": "dropout_p", "noise": "noise_std"}
SUFFIXES = {"coverage": "", "vote": "_for_vote"}  # of the keys of generation_config.json
MEASURES = {
    "coverage": lambda record: float(any(record["correct"])),
    "vote": lambda record: float(record["vote"] == gold_of(record)),
}
FACTORS = (0.125, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # times the present value
DIGITS = 4  # of a strength


@dataclass
class Curve:
    """What one sampler reaches at each of its strengths, K of them.

    measures: {measure: (K, 3)}, percent with the ends of its 95 % interval at the largest N, the
    mean over seeds.
    """

    sampler: str
    strengths: list
    measures: dict

    def best(self, measure):
        """The strength with the largest value; of equals the smallest."""
        return self.strengths[int(np.argmax(self.measures[measure][:, 0]))]

    def at_an_end(self, measure):
        """Whether that is the first or last strength, so that a better one may lie beyond."""
        return self.best(measure) in (self.strengths[0], self.strengths[-1])


def grids_of(arguments):
    """{sampler: its strengths}: those of the flags, or some around the checkpoint's present one."""
    present = checkpoint_defaults(arguments.model_type, arguments.model_id)
    given = {"dropout": arguments.dropout_ps, "noise": arguments.noise_stds}
    return {
        sampler: sorted(given[sampler] or _grid_around(getattr(present, name)))
        for sampler, name in STRENGTHS.items()
    }


def _grid_around(value):
    return {round(factor * value, DIGITS) for factor in FACTORS}


def cells(arguments, grids):
    """The command lines of a choice: greedy, and every strength of ``grids`` with every seed."""
    command = sampling_command(arguments.model_type)
    shared = {
        "model_type": arguments.model_type,
        "model_id": arguments.model_id,
        "data_path": arguments.data_path,
        "limit": arguments.limit,
        "batch_size": arguments.batch_size,
    }
    folder = Path(arguments.output_dir)
    lines = [command_line(command, shared | {"do_sample": False, "output_dir": folder / "greedy"})]
    for sampler, strengths in grids.items():
        for strength in strengths:
            for seed in arguments.seeds:
                flags = {
                    "n_samples": arguments.n_samples,
                    "sampling_by": sampler,
                    STRENGTHS[sampler]: strength,
                    "seed": seed,
                    "output_dir": folder / f"{sampler}-{strength}-seed{seed}",
                }
                lines.append(command_line(command, shared | flags))
    return lines


def curves(runs):
    """The Curve of each sampler, from finished runs over the same questions."""
    found = []
    for sampler, name in STRENGTHS.items():
        by_strength = groups_of(
            [run for run in runs if run.settings["sampling_by"] == sampler],
            lambda run: run.settings[name],  # noqa: B023, called at once
        )
        strengths = sorted(by_strength)
        measures = {
            measure: np.array([_mean(by_strength[value], hit) for value in strengths])
            for measure, hit in MEASURES.items()
        }
        found.append(Curve(sampler, strengths, measures))
    return found


def _mean(runs, hit):
    """[value, low, high] in percent: the mean over seeds of each question, then over questions."""
    hits = [[hit(record) for _, record in sorted(run.records.items())] for run in runs]  # (S, Q)
    return interval(np.mean(hits, axis=0))


def table_of(curves, runs):
    """The lines of a table: greedy, and coverage and vote at every strength, the best marked."""
    (greedy,) = [run for run in runs if run.greedy]
    accuracy = interval([MEASURES["vote"](record) for record in greedy.records.values()])
    lines = ["greedy {:.1f} [{:.1f}, {:.1f}]".format(*accuracy)]
    for curve in curves:
        for k, strength in enumerate(curve.strengths):
            cells = [f"{STRENGTHS[curve.sampler]} {strength}".ljust(18)]
            for measure, points in curve.measures.items():
                mark = "*" if strength == curve.best(measure) else " "
                value, low, high = points[k]
                cells.append(f"{measure} {value:.1f}{mark} [{low:.1f}, {high:.1f}]")
            lines.append("  ".join(cells))
    return lines


def choices_of(curves):
    """{key of generation_config.json: strength}; warns where the grid may be too narrow."""
    choices = {}
    for curve in curves:
        for measure, suffix in SUFFIXES.items():
            name, strength = STRENGTHS[curve.sampler] + suffix, curve.best(measure)
            if curve.at_an_end(measure):
                warn(f"{name}: {strength} lies at an end of the grid, try values beyond it")
            choices[name] = strength
    return choices


def write_choices(arguments, choices):
    """Writes the choices into the checkpoint's generation_config.json; returns what to print.

    Other keys stay as they are. Raises UserError where the file can't be read.
    """
    path = Path(arguments.model_id) / GENERATION
    values = read_json(path) if path.exists() else {}
    write_json(path, dict(sorted((values | choices).items())))
    return [*(f"{name}: {value}" for name, value in choices.items()), f"wrote {path}"]
