"""The figure "adaptive": what stopping each question when its vote is decided saves."""

from dataclasses import dataclass

import numpy as np

from src.runs.figure_data import (
    benchmark_of,
    ends_of,
    greedy_accuracies,
    groups_of,
    model_of,
    sampler_labels,
    sampler_of,
    strength_of,
    title_of,
)
from src.runs.figure_style import (
    GREEDY_LOOK,
    GREY,
    draw_band,
    draw_legend,
    greedy_entry,
    panel_grid,
    sampler_colors,
    set_size_axis,
)
from src.search.adaptive import ERRORS, stopped_size
from utils.answers import is_right
from utils.metrics import majority_vote, measured, powers_of_two

FIXED_LOOK = {"linestyle": "--", "marker": "o"}
ADAPTIVE_LOOK = {"linestyle": "-", "marker": "s"}
LIVE_LOOK = {"linestyle": "none", "marker": "D", "markerfacecolor": "none", "markersize": 7}
FEWEST = 16  # trajectories of a pool; stopping a smaller one saves little


@dataclass
class AdaptiveCurves:
    """The vote of one sampler on one benchmark.

    sampler: its kind, its parameter, and its label. fixed, adaptive (K, 4): the mean number of
    trajectories, then accuracy and the ends of its interval in percent; of the vote of N for
    growing N, and of the vote that stops at each of src.search.adaptive.ERRORS. live: the same of
    runs with --stop_error.
    """

    sampler: tuple
    fixed: np.ndarray
    adaptive: np.ndarray
    live: np.ndarray


@dataclass
class AdaptivePanel:
    """The curves of one model on one benchmark. greedy: the accuracies of its greedy runs."""

    title: str
    curves: list
    greedy: list


def adaptive_panels(runs):
    """{model: its AdaptivePanels}, of the pools of at least FEWEST trajectories."""
    sampled = [run for run in runs if not run.greedy and not run.beams]
    panels = {}
    for model, of_model in groups_of(sampled, model_of).items():
        labels = sampler_labels(of_model)
        found = [_panel(same, labels, runs) for same in groups_of(of_model, benchmark_of).values()]
        if any(panel.curves for panel in found):
            panels[model] = [panel for panel in found if panel.curves]
    return panels


def _panel(sampled, labels, runs):
    curves = []
    for key, same in groups_of(sampled, sampler_of).items():
        pools = [r for r in same if not r.stopped and r.metrics["n_samples"] >= FEWEST]
        if pools:
            sampler = (pools[0].settings["sampling_by"], strength_of(pools[0]), labels[key])
            curves.append(_curves(sampler, pools, [run for run in same if run.stopped]))
    curves.sort(key=lambda curve: curve.sampler)
    return AdaptivePanel(title_of(sampled[0]), curves, greedy_accuracies(sampled, runs))


def _curves(sampler, pools, stopped):
    """The AdaptiveCurves of one sampler's largest pools, the mean over seeds of each question."""
    size = max(run.metrics["n_samples"] for run in pools)
    seeds = {r.settings["seed"]: r for r in pools if r.metrics["n_samples"] == size}.values()
    fixed = [_point(seeds, lambda _, n=n: n, size) for n in powers_of_two(size)]
    adaptive = [_point(seeds, lambda x, e=e: stopped_size(x, e), size) for e in ERRORS]
    live = [_point([run], len, run.metrics["n_samples"]) for run in stopped]
    return AdaptiveCurves(sampler, *map(np.array, (fixed, adaptive, live)))


def _point(seeds, size_of, most):
    """[mean number of trajectories, accuracy, low, high] of votes of the first size_of(pool)."""
    sizes, hits = [], []
    for run in seeds:
        pools = [(r["predictions"][:most], r["answer"]) for _, r in sorted(run.records.items())]
        of_run = [size_of(pool) for pool, _ in pools]
        votes = zip(pools, of_run, strict=True)
        hits.append([is_right(majority_vote(pool[:n]), answer) for (pool, answer), n in votes])
        sizes.append(of_run)
    return [float(np.mean(sizes)), *ends_of(measured(np.mean(hits, axis=0)))]


def adaptive_figures(runs):
    """[("adaptive MODEL", Figure)]"""
    by_model = adaptive_panels(runs)
    every = [curve for panels in by_model.values() for panel in panels for curve in panel.curves]
    colors = sampler_colors(curve.sampler for curve in every)
    return [
        (f"adaptive {model}", _figure(model, panels, colors))
        for (model, _), panels in by_model.items()
    ]


def _figure(model, panels, colors):
    """Accuracy of the vote against the mean number of trajectories, a panel a benchmark.

    Only the vote of a fixed N has a band: the other's would hide it. One sampler is in the title.
    """
    shown = {curve.sampler[-1] for panel in panels for curve in panel.curves}
    labels = [label for label in colors if label in shown]
    only = f", {labels[0]}" if len(labels) == 1 else ""
    figure, axes = panel_grid(f"{model}{only}, majority vote", "questions, %", len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        axis.set_title(panel.title)
        for curve in panel.curves:
            _draw(axis, curve, colors[curve.sampler[-1]])
        for accuracy in panel.greedy:
            axis.axhline(accuracy, **GREEDY_LOOK)
        set_size_axis(axis, [int(n) for n in panel.curves[0].fixed[:, 0]])
        axis.set_xlabel("trajectories a question, mean")
    samplers = {label: {"color": colors[label]} for label in labels} if len(labels) > 1 else {}
    draw_legend(figure, samplers | _entries(panels), columns=2)
    return figure


def _entries(panels):
    """The legend's entries of the ways to stop: {label: how its line looks}."""
    rates = f"error {ERRORS[-1]} (left) to {ERRORS[0]} (right)"
    looks = {
        "N for every question, 95 % band": FIXED_LOOK,
        f"stopped when decided, {rates}": ADAPTIVE_LOOK,
    }
    if any(len(curve.live) for panel in panels for curve in panel.curves):
        looks["runs with --stop_error"] = LIVE_LOOK
    entries = {label: {"color": GREY, **look} for label, look in looks.items()}
    return entries | greedy_entry(panels)


def _draw(axis, curve, color):
    axis.plot(curve.fixed[:, 0], curve.fixed[:, 1], color=color, **FIXED_LOOK)
    draw_band(axis, curve.fixed[:, 0], curve.fixed[:, 2], curve.fixed[:, 3], color)
    axis.plot(curve.adaptive[:, 0], curve.adaptive[:, 1], color=color, **ADAPTIVE_LOOK)
    if len(curve.live):
        axis.plot(curve.live[:, 0], curve.live[:, 1], color=color, **LIVE_LOOK)
