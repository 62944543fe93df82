"""The figure "diversity": what sampling reaches as its strength, p or sigma, grows."""

from dataclasses import dataclass

import numpy as np

from src.runs.figure_data import (
    benchmark_of,
    ends_of,
    greedy_accuracies,
    groups_of,
    hits_of,
    model_of,
    strength_of,
    title_of,
    variant_of,
)
from src.runs.figure_style import (
    GREEDY_LOOK,
    GREY,
    draw_curve,
    draw_legend,
    greedy_entry,
    panel_grid,
    sampler_colors,
    set_log_axis,
)
from utils.metrics import distinct_share, measured

LABEL_ROOM = 0.13  # of the axis' width, from one label to the next
FEWEST_STRENGTHS = 3  # that make a curve
DIVERSITIES = {
    "distance": "mean distance between thoughts",
    "distinct_answers": "distinct answers / N, %",
}
OUTCOMES = {"coverage": "-", "vote": "--"}
OFFSETS = {"dropout": (-7, -7)}  # in points, of a strength from its point
OTHER_OFFSET = (7, 7)
SYMBOLS = {
    "dropout": "dropout (p)",
    "noise": "noise (sigma)",
    "svp": "SVP (alpha)",
    "weight_noise": "weight noise (sigma)",
    "tokens": "tokens (temperature)",
}


@dataclass
class DiversityCurve:
    """What one kind of sampler reaches on one benchmark as its strength grows.

    variant: the sampler without its strength, (name, value) pairs, the kind first. size:
    trajectories N. strengths: the K values of p or sigma, growing. per_question: {measure: (K, Q)}
    of Q questions: "distance" (src.search.diversity), and from 0 to 1 "distinct_answers",
    "coverage" and "vote"; each the mean over seeds.
    """

    variant: tuple
    size: int
    strengths: list
    per_question: dict

    @property
    def kind(self):
        return dict(self.variant)["sampling_by"]

    def points(self, measure):
        """Mean over questions and the ends of its interval, (K, 3); all but distances in %."""
        scale = 1 if measure == "distance" else 100
        means = [measured(row, scale, decimals=4) for row in self.per_question[measure]]
        return np.array([ends_of(mean) for mean in means])


@dataclass
class DiversityPanel:
    """The curves of one model on one benchmark. greedy: the accuracies of its greedy runs."""

    title: str
    curves: list
    greedy: list


def diversity_panels(runs):
    """{model: its DiversityPanels}, of benchmarks with at least one curve.

    A curve has at least FEWEST_STRENGTHS strengths of a sampler whose other settings are the same,
    with pools of the same size, the largest that has so many. Pools without thought_distance, of
    older versions, are left out.
    """
    pools = [run for run in runs if not run.greedy and not run.beams and _has_distances(run)]
    panels = {}
    for model, of_model in groups_of(pools, model_of).items():
        of_benchmarks = groups_of(of_model, benchmark_of).values()
        found = [_panel(same, runs) for same in of_benchmarks]
        if any(panel.curves for panel in found):
            panels[model] = [panel for panel in found if panel.curves]
    return panels


def _has_distances(run):
    return all("thought_distance" in record for record in run.records.values())


def _panel(pools, runs):
    curves = [_curve(variant, same) for variant, same in groups_of(pools, variant_of).items()]
    curves = sorted((curve for curve in curves if curve), key=lambda curve: curve.kind)
    return DiversityPanel(title_of(pools[0]), curves, greedy_accuracies(pools, runs))


def _curve(variant, pools):
    """The DiversityCurve of some pools, or None where there are too few strengths."""
    by_size = groups_of(pools, lambda run: run.metrics["n_samples"])
    for size in sorted(by_size, reverse=True):
        by_strength = groups_of(by_size[size], strength_of)
        if len(by_strength) >= FEWEST_STRENGTHS:
            strengths = sorted(by_strength)
            points = [_measures(by_strength[strength], size) for strength in strengths]  # K
            per_question = {name: np.array([point[name] for point in points]) for name in points[0]}
            return DiversityCurve(variant, size, strengths, per_question)
    return None


def _measures(pools, n):
    """{measure: (Q,)} of the pools of one strength, the mean over their seeds."""
    seeds = list({run.settings["seed"]: run for run in pools}.values())
    hits = np.mean([hits_of(run, n) for run in seeds], axis=0)  # (Q, 2)
    diversity = np.mean([_diversity(run, n) for run in seeds], axis=0)  # (Q, 2)
    names = ("distance", "distinct_answers", "coverage", "vote")
    return dict(zip(names, [*diversity.T, *hits.T], strict=True))


def _diversity(run, n):
    """Distance of thoughts, and the share of distinct ones among n answers, (Q, 2)."""
    records = [record for _, record in sorted(run.records.items())]
    return [(r["thought_distance"], distinct_share(r["predictions"][:n])) for r in records]


def diversity_figures(runs):
    """[("diversity MODEL", Figure)], of models with several strengths of a sampler."""
    found = diversity_panels(runs)
    return [(f"diversity {model}", _figure(model, panels)) for (model, _), panels in found.items()]


def _figure(model, panels):
    """Coverage (solid) and vote (dashed) against both diversities, a row a benchmark.

    The points of a line are in the order of p or sigma, which stands beside those of the vote.
    """
    labels = _labels(panels)
    colors = sampler_colors((dict(v)["sampling_by"], label, label) for v, label in labels.items())
    sizes = sorted({curve.size for panel in panels for curve in panel.curves})
    figure, axes = panel_grid(
        f"{model}, N = {' or '.join(map(str, sizes))}", "questions, %",
        len(DIVERSITIES) * len(panels), len(DIVERSITIES), sharex="col", sharey="row",
    )  # fmt: skip
    for panel, pair in zip(panels, axes.reshape(-1, len(DIVERSITIES)), strict=True):
        pair[0].set_title(panel.title)
        for axis, diversity in zip(pair, DIVERSITIES, strict=True):
            set_log_axis(axis, (1, 2, 5))
            axis.margins(x=0.08)  # room for the strengths
            shown = [curve for curve in panel.curves if curve.points(diversity)[:, 0].min() > 0]
            for curve in shown:  # with the same thoughts in all trajectories there is no distance
                _draw(axis, curve, diversity, colors[labels[curve.variant]])
            for curve in shown:
                _label(axis, curve, diversity, colors[labels[curve.variant]])
            for accuracy in panel.greedy:
                axis.axhline(accuracy, **GREEDY_LOOK)
    for axis, label in zip(axes[-len(DIVERSITIES) :], DIVERSITIES.values(), strict=True):
        axis.set_xlabel(label)
    entries = {label: {"color": color} for label, color in colors.items()}
    entries |= {name: {"color": GREY, "linestyle": style} for name, style in OUTCOMES.items()}
    draw_legend(figure, entries | greedy_entry(panels), columns=5)
    return figure


def _labels(panels):
    """{variant of a curve: its name}, ``dropout (p)`` and what tells it from others of its kind."""
    variants = {curve.variant: None for panel in panels for curve in panel.curves}
    labels = {}
    for variant in variants:
        same = [dict(other) for other in variants if other[0] == variant[0]]
        differ = [(k, v) for k, v in variant if any(other[k] != v for other in same)]
        kind = " + ".join(SYMBOLS[name] for name in variant[0][1].split("+"))
        labels[variant] = ", ".join([kind, *(f"{name} {value}" for name, value in differ)])
    return labels


def _draw(axis, curve, diversity, color):
    x = curve.points(diversity)[:, 0]
    for outcome, style in OUTCOMES.items():
        draw_curve(axis, x, curve.points(outcome), color, style)


def _label(axis, curve, diversity, color):
    """Writes the strengths beside the points of the vote, as many as have room."""
    x, votes = curve.points(diversity)[:, 0], curve.points("vote")[:, 0]
    offset = OFFSETS.get(curve.kind, OTHER_OFFSET)
    look = {"textcoords": "offset points", "ha": "center", "va": "center", "color": color}
    low, high = axis.get_xlim()
    for k in _with_room(np.log(x) / np.log(high / low)):
        axis.annotate(f"{curve.strengths[k]:g}", (x[k], votes[k]), offset, fontsize=8, **look)


def _with_room(places):
    """The indices of points (K,), in widths of the axis, whose labels do not overlap."""
    chosen = [len(places) - 1]
    for k in reversed(range(len(places) - 1)):
        if abs(places[chosen[-1]] - places[k]) >= LABEL_ROOM:
            chosen.append(k)
    return sorted(chosen)
