"""The figures of the claims' report: all comparisons at a glance, and those of finished runs."""

from pathlib import Path

from src.claims.plan import PAPER, SHIPPED, SWEPT
from src.claims.verdicts import FAILS, HOLDS, OPEN
from src.runs.figure_style import GREEDY_LOOK, STYLE, load_matplotlib
from src.runs.figures import draw, save

FOLDER = "claims"  # beside the report, so that docs/claims.md and docs/claims are a copy of both
FOREST = "all"  # the figure of all comparisons
COLORS = {HOLDS: "#0072B2", OPEN: "#777777", FAILS: "#D55E00"}
WIDTH, ROW_HEIGHT, MARGIN_HEIGHT = 7.0, 0.2, 0.9  # inches


def forest_figure(judged):
    """A row for each comparison: the difference with its 95 % interval, coloured by its verdict.

    judged: {claim's name: {part: [Comparison]}}.
    """
    rows = [
        (f"{name}  {row.where}: {' vs '.join(row.names)}", row)
        for name, parts in judged.items()
        for of_part in parts.values()
        for row in of_part
        if row.rule != "same"  # has no interval
    ]
    height = MARGIN_HEIGHT + ROW_HEIGHT * len(rows)
    figure = load_matplotlib().figure.Figure(figsize=(WIDTH, height), layout="constrained")
    axis = figure.subplots()
    axis.axvline(0, **GREEDY_LOOK)
    for y, (_, row) in enumerate(rows):
        errors = [[row.value - row.low], [row.high - row.value]]
        look = {"fmt": "o", "color": COLORS[row.verdict], "elinewidth": 1.2}
        axis.errorbar([row.value], [y], xerr=errors, **look)
    axis.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=7)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("first minus second, points")
    handles = [axis.plot([], [], "o", color=color)[0] for color in COLORS.values()]
    figure.legend(handles, list(COLORS), loc="outside lower center", ncols=len(COLORS))
    return figure


def draw_figures(plan, evidence, judged):
    """Draws all figures into FOLDER; returns {kind: [names of their files]}."""
    folder, found = Path(plan.folder) / FOLDER, {}
    with load_matplotlib().rc_context(STYLE):
        save(forest_figure(judged), folder / FOREST)
        for kinds, folders in _runs_of_figures(plan).items():
            for name, figure in draw(map(evidence.run, folders), kinds=kinds).items():
                save(figure, folder / name)
                found.setdefault(name.partition("-")[0], []).append(name)
    return found


def _runs_of_figures(plan):
    """{kinds of figures: folders of the runs that they show}."""
    setting = plan.setting
    seed, benchmarks = setting.seeds[0], setting.benchmarks
    greedy = [plan.greedy(benchmark) for benchmark in benchmarks]
    pools = [
        plan.pool(benchmark, sampler, strength, of_seed)
        for benchmark in benchmarks
        for sampler, strength in setting.chosen.items()
        for of_seed in setting.seeds
    ]
    swept = [
        plan.pool(SWEPT, sampler, strength, of_seed)
        for sampler in setting.chosen
        for strength in setting.grid(sampler)
        for of_seed in setting.seeds
    ]
    shipped = [plan.chosen(SHIPPED, benchmark, seed) for benchmark in benchmarks]
    beams = [plan.beams(SHIPPED, benchmark, seed) for benchmark in benchmarks]
    trained = [plan.chosen(PAPER, benchmark, seed) for benchmark in benchmarks]
    return {
        ("coverage",): greedy + pools,
        ("diversity",): [plan.greedy(SWEPT), *swept],
        ("map",): [plan.map(sampler) for sampler in (None, *setting.chosen)],
        ("cost", "gains"): greedy + shipped + beams,
        ("latent_rm",): shipped + trained,
    }
