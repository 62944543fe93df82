"""All figures of finished runs.

Here are those of coverage, cost and gains; figure_data.py has their numbers. figure_adaptive.py,
figure_diversity.py, figure_maps.py, figure_latent_rm.py and figure_training.py have the others with
their numbers, figure_style.py what they share. A figure is a matplotlib Figure without window or
global state, so no display is needed.
"""

import re
from pathlib import Path

from src.runs.figure_adaptive import adaptive_figures
from src.runs.figure_data import (
    MOST_STEPS,
    best_methods,
    comparisons,
    cost_panel,
    coverage_panels,
    gain_panel,
)
from src.runs.figure_diversity import diversity_figures
from src.runs.figure_latent_rm import latent_rm_figures
from src.runs.figure_maps import map_figures
from src.runs.figure_style import (
    COLUMNS,
    COVERAGE_LOOK,
    GREEDY_LOOK,
    GREY,
    METHOD_COLORS,
    STYLE,
    base_method,
    draw_band,
    draw_curve,
    draw_legend,
    greedy_entry,
    load_matplotlib,
    method_look,
    panel_grid,
    sampler_colors,
    set_log_axis,
    set_size_axis,
)
from src.runs.figure_training import training_figures
from src.runs.tables import is_search
from utils.errors import UserError
from utils.files import atomic_path

BEST_METHODS = 2  # that are shown beside the vote where room is short
COSTS = ("generator's passes a question (thoughts, tokens)", "milliseconds a question")
FORMATS = ("png", "pdf")
KINDS = ("coverage", "adaptive", "cost", "gains", "latent_rm", "diversity", "map")


def plot(runs, folder, projection="pca", kinds=KINDS, histories=None):
    """Draws figures of some finished runs into a folder; returns their paths.

    projection: of the maps of thoughts, "pca" or "tsne". kinds: which of KINDS. histories: of
    finished backbones, as in figure_training, drawn too. Raises UserError where there is nothing to
    draw, or no matplotlib, or for "tsne" no scikit-learn.
    """
    with load_matplotlib().rc_context(STYLE):
        figures = draw(runs, projection, kinds) | dict(training_figures(histories or {}))
        if not figures:
            raise UserError("nothing to draw, there are only greedy runs; sample some answers")
        return [path for name, figure in figures.items() for path in save(figure, folder / name)]


def figures_line(runs, folder, kinds=KINDS):
    """Draws figures into ``folder``/figures; says in a line where, or why there are none."""
    try:
        paths = plot(runs, Path(folder) / "figures", kinds=kinds)
    except UserError as error:
        return f"no figures: {error}"
    shown = [str(path) for path in paths if path.suffix == ".png"]
    return f"figures: {', '.join(shown)} (and as .pdf)"


def draw(runs, projection="pca", kinds=KINDS):
    """{name of its file: Figure} of some finished runs; panels in the order of benchmarks.

    A name begins with its kind. projection, kinds: as in ``plot``.
    """
    runs = sorted(runs, key=lambda run: run.columns["benchmark"])
    draws = {
        "coverage": _coverage_figures,
        "adaptive": adaptive_figures,
        "cost": lambda runs: _comparison_figures("cost", cost_panel, cost_figure, runs),
        "gains": lambda runs: _comparison_figures("gains", gain_panel, gain_figure, runs),
        "latent_rm": latent_rm_figures,
        "diversity": diversity_figures,
        "map": lambda runs: map_figures(runs, projection),
    }
    figures, whole = {}, [run for run in runs if not run.stopped]
    for kind in kinds:
        for name, figure in draws[kind](runs if kind == "adaptive" else whole):
            figures[_free_name(name, figures)] = figure
    return figures


def _coverage_figures(runs):
    """[("coverage MODEL", Figure)]"""
    covered = coverage_panels(runs)
    all_panels = [panel for panels in covered.values() for panel in panels]
    colors = sampler_colors(curve.sampler for panel in all_panels for curve in panel.curves)
    return [
        (f"coverage {model}", coverage_figure(model, panels, colors))
        for (model, _), panels in covered.items()
    ]


def _comparison_figures(kind, panel_of, figure_of, runs):
    """[("KIND TITLE", Figure)], TITLE naming reward model and sampler."""
    drawn = []
    for title, by_panel in comparisons(runs):
        panels = [panel_of(name, choosing, runs) for name, choosing in by_panel.items()]
        panels = [panel for panel in panels if panel]
        if panels:
            drawn.append((f"{kind} {title}", figure_of(title, panels)))
    return drawn


def _free_name(text, taken):
    """A file's name made of some text, numbered where other figures have it."""
    name = re.sub(r"[^\w.]+", "-", text).strip("-")
    same = sum(other.partition("--")[0] == name for other in taken)
    return f"{name}--{same + 1}" if same else name


def save(figure, path):
    """Writes one figure in all formats; returns the paths."""
    paths = [path.with_name(f"{path.name}.{ending}") for ending in FORMATS]
    for written, ending in zip(paths, FORMATS, strict=True):
        undated = {"CreationDate": None} if ending == "pdf" else None  # the same file again
        with atomic_path(written) as temporary:
            figure.savefig(temporary, format=ending, dpi=150, metadata=undated)
    return paths


def coverage_figure(model, panels, colors):
    """Coverage (solid), majority vote (dashed) and greedy (dotted) against N, a panel a benchmark.

    With one sampler the lines carry their names; with several there is a legend.
    """
    labels = {curve.sampler[-1]: None for panel in panels for curve in panel.curves}
    only = next(iter(labels)) if len(labels) == 1 else None
    figure, axes = panel_grid(f"{model}, {only}" if only else model, "questions, %", len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        axis.set_title(panel.title)
        for curve in panel.curves:
            color = colors[curve.sampler[-1]]
            draw_curve(axis, curve.sizes, curve.coverage, color, "-")
            draw_curve(axis, curve.sizes, curve.vote, color, "--")
        for accuracy in panel.greedy:
            axis.axhline(accuracy, **GREEDY_LOOK)
        set_size_axis(axis, sorted({n for curve in panel.curves for n in curve.sizes}))
        axis.set_xlabel("trajectories N")
    if only:
        _name_lines(axes[-1], panels[-1], colors[only])
    else:
        entries = {label: (colors[label], "-") for label in colors if label in labels}
        entries |= {"coverage": (GREY, "-"), "majority vote": (GREY, "--")}
        looks = {name: {"color": c, "linestyle": s} for name, (c, s) in entries.items()}
        draw_legend(figure, looks | greedy_entry(panels))
    return figure


def _name_lines(axis, panel, color):
    """The names of one sampler's lines, right of the axis."""
    curve = panel.curves[0]
    lines = [
        (curve.coverage[-1, 0], "coverage", color),
        (curve.vote[-1, 0], "majority vote", color),
    ]
    lines += [(accuracy, "greedy", GREY) for accuracy in panel.greedy]
    low, high = axis.get_ylim()
    gap, free = 0.08 * (high - low), low
    for y, name, shade in sorted(lines):
        y = max(y, free)
        axis.annotate(name, (1.02, y), xycoords=("axes fraction", "data"), color=shade, va="center")
        free = y + gap


def cost_figure(title, panels):
    """Accuracy of every method against its cost, a row a benchmark; coverage is the ceiling.

    The time includes the reward model's passes, and those that read candidates.
    """
    columns = len(COSTS)
    figure, axes = panel_grid(
        title, "questions answered, %", columns * len(panels), columns, sharex="col", sharey="row"
    )
    for panel, pair in zip(panels, axes.reshape(-1, columns), strict=True):
        pair[0].set_title(panel.title)
        for cost, axis in enumerate(pair):
            _draw_costs(axis, panel, cost)
    for axis, label in zip(axes[-columns:], COSTS, strict=True):
        axis.set_xlabel(label)
        set_log_axis(axis, (1, 3))
    entries = _cost_entries(panels) | greedy_entry(panels)
    draw_legend(figure, entries, columns=4 if len(entries) <= 8 else 3)
    return figure


def _cost_entries(panels):
    """The legend of the cost figure: methods have colours, what guides a search has a marker."""
    methods = {method for panel in panels for method in panel.methods}
    shown = [m for m in METHOD_COLORS if m in set(map(base_method, methods))]
    budgets = sorted({n for panel in panels for n in panel.proposals})
    searches = [method for method in shown if is_search(method)]
    names = {"majority": "majority, 95 % band"}
    names |= {m: f"{m}, {' or '.join(map(str, budgets))} proposals" for m in searches[:1]}
    entries = {names.get(method, method): method_look(method) for method in shown}
    variants = sorted({m.partition(" ")[2] for m in methods if base_method(m) in searches} - {""})
    entries |= {
        f"search, {v}": method_look(f"{searches[0]} {v}") | {"color": GREY} for v in variants
    }
    if any(panel.coverage.size for panel in panels):
        entries["coverage"] = COVERAGE_LOOK
    return entries


def _draw_costs(axis, panel, cost):
    """One panel. Only the vote has a band: those of all methods would hide each other."""
    axis.plot(panel.coverage[:, cost], panel.coverage[:, 2], **COVERAGE_LOOK)
    for method, points in panel.methods.items():
        if base_method(method) in METHOD_COLORS:
            axis.plot(points[:, cost], points[:, 2], **method_look(method))
        if method == "majority":
            draw_band(axis, points[:, cost], points[:, 3], points[:, 4], METHOD_COLORS[method])
    for accuracy in panel.greedy:
        axis.axhline(accuracy, **GREEDY_LOOK)


def gain_figure(title, panels):
    """Gains over greedy of the vote and the best methods by number of steps, with intervals.

    The best methods are chosen by these gains, which flatters them somewhat.
    """
    sizes = sorted({panel.size for panel in panels})
    heading = f"{title}, N = {' or '.join(map(str, sizes))}"
    steps = sorted({n for panel in panels for n in panel.steps})
    columns = COLUMNS if len(steps) <= 4 else 2  # room for the counts below the axis
    figure, axes = panel_grid(
        heading, "gain over greedy, points", len(panels), columns, sharey=True
    )
    methods = best_methods(panels, METHOD_COLORS, BEST_METHODS)
    for axis, panel in zip(axes, panels, strict=True):
        axis.set_title(panel.title)
        axis.axhline(0, **GREEDY_LOOK)
        for rank, method in enumerate(methods):
            shift = 0.2 * (rank - (len(methods) - 1) / 2)
            _draw_gains(axis, list(panel.steps), panel.gains[method], shift, method)
        longest = {MOST_STEPS: f"{MOST_STEPS}+"}
        ticks = [f"{longest.get(n, n)}\n({count})" for n, count in panel.steps.items()]
        axis.set_xticks(list(panel.steps), ticks)
        axis.set_xlim(steps[0] - 0.5, steps[-1] + 0.5)
        axis.set_xlabel("steps (problems)")
    entries = {method: method_look(method) | {"linestyle": "none"} for method in methods}
    draw_legend(figure, entries | {"greedy": GREEDY_LOOK})
    return figure


def _draw_gains(axis, steps, points, shift, method):
    """The gains (K, 3) of one method, beside those of the others by ``shift``."""
    errors = abs(points[:, 1:] - points[:, :1]).T  # (2, K), lengths below and above
    look = {"fmt": "o", "color": METHOD_COLORS[method], "elinewidth": 1.2}
    axis.errorbar([n + shift for n in steps], points[:, 0], errors, label=method, **look)
