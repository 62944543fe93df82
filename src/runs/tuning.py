"""The choice of a sampler's strength: one for coverage, one for the majority vote."""

from pathlib import Path

from src.models.latent_reasoner import generation_key
from src.models.loading import GENERATION, checkpoint_architecture, checkpoint_defaults
from src.runs.figure_diversity import diversity_panels
from src.runs.finished_runs import read_json
from src.runs.launch import command_line, sampling_command
from src.sampling.samplers import STRENGTHS
from utils.errors import UserError, warn
from utils.files import write_json

SUFFIXES = {"coverage": "", "vote": "_for_vote"}  # of the keys of generation_config.json
FACTORS = (0.125, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # times the present strength
DIGITS = 4  # of a strength
TOLERANCE = 0.5  # points of coverage or vote that do not matter


def grids_of(arguments):
    """{sampler: its strengths}: those of the flags, or some around the checkpoint's present one."""
    present = checkpoint_defaults(arguments.model_type, arguments.model_id)
    grids = {}
    for sampler in arguments.samplers:
        name = STRENGTHS[sampler]
        given = getattr(arguments, f"{name}s")
        grids[sampler] = sorted(given or _grid_around(name, getattr(present, name)))
    return grids


def _grid_around(name, value):
    if not value:
        raise UserError(f"{name} of the checkpoint is 0: name the values to try, --{name}s ..")
    return {round(factor * value, DIGITS) for factor in FACTORS}


def cells(arguments, grids):
    """{folder: command line} of a choice: greedy, and each strength of ``grids`` and seed."""
    architecture = checkpoint_architecture(arguments.model_type, arguments.model_id)
    command = sampling_command(architecture)
    shared = {
        "model_type": arguments.model_type,
        "model_id": arguments.model_id,
        "data_path": arguments.data_path,
        "limit": arguments.limit,
        "batch_size": arguments.batch_size,
    }
    folder = Path(arguments.output_dir)
    flags_of = {folder / "greedy": {"do_sample": False}}
    for sampler, strengths in grids.items():
        for strength in strengths:
            for seed in arguments.seeds:
                flags_of[folder / f"{sampler}-{strength}-seed{seed}"] = {
                    "n_samples": arguments.n_samples,
                    "sampling_by": sampler,
                    STRENGTHS[sampler]: strength,
                    "seed": seed,
                }
    return {
        path: command_line(command, shared | flags | {"output_dir": path})
        for path, flags in flags_of.items()
    }


def curves_of(runs):
    """The DiversityCurve of each sampler, and greedy's accuracy in percent."""
    ((panel,),) = diversity_panels(runs).values()
    return panel.curves, panel.greedy[0]


def best_strength(curve, measure):
    """The strength for "coverage" or for "vote" at the largest N.

    Of the strengths within TOLERANCE of the best one, differences are chance, so what they cost the
    other purpose decides: for coverage the weakest is taken, for the vote the strongest.
    """
    values = 100 * curve.per_question[measure].mean(axis=1)  # (K,)
    near = values >= values.max() - TOLERANCE
    level = [strength for strength, is_near in zip(curve.strengths, near, strict=True) if is_near]
    return min(level) if measure == "coverage" else max(level)


def table_of(curves, greedy):
    """The lines of a table: greedy, and coverage and vote at every strength, the chosen marked."""
    lines = [f"greedy {greedy:.1f}"]
    for curve in curves:
        for k, strength in enumerate(curve.strengths):
            cells = [f"{STRENGTHS[curve.kind]} {strength}".ljust(22)]
            for measure in SUFFIXES:
                mark = "*" if strength == best_strength(curve, measure) else " "
                value, low, high = curve.points(measure)[k]
                cells.append(f"{measure} {value:.1f}{mark} [{low:.1f}, {high:.1f}]".ljust(30))
            lines.append("  ".join(cells).rstrip())
    return lines


def choices_of(curves):
    """{key of generation_config.json: strength}; warns where the grid may be too narrow."""
    choices = {}
    for curve in curves:
        for measure, suffix in SUFFIXES.items():
            name, strength = STRENGTHS[curve.kind] + suffix, best_strength(curve, measure)
            if strength in (curve.strengths[0], curve.strengths[-1]):
                warn(f"{name}: {strength} lies at an end of the grid, try values beyond it")
            choices[generation_key(name)] = strength
    return choices


def write_choices(arguments, choices):
    """Writes the choices into the checkpoint's generation_config.json; returns what to print.

    Other keys stay as they are. Raises UserError where the file can't be read.
    """
    path = Path(arguments.model_id) / GENERATION
    values = read_json(path) if path.exists() else {}
    write_json(path, dict(sorted((values | choices).items())))
    return [*(f"{name}: {value}" for name, value in choices.items()), f"wrote {path}"]
