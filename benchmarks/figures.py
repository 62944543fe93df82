"""The figures of a benchmark: times against N and against the batch, and the share of the limit."""

from src.runs.figure_style import (
    GREY,
    METHOD_COLORS,
    STYLE,
    draw_legend,
    load_matplotlib,
    panel_grid,
)
from src.runs.figures import save

LOOKS = {
    "noise": {"color": METHOD_COLORS["weighted_vote"], "marker": "o"},
    "dropout, shared prompt": {"color": METHOD_COLORS["bayesian_vote"], "marker": "s"},
    "dropout, own prompts": {"color": METHOD_COLORS["best_of_n"], "marker": "^"},
}
PLAIN_LOOKS = {
    "all logits": {"color": GREY, "marker": "x", "linestyle": "--"},
    "last logits": {"color": GREY, "marker": "+", "linestyle": ":"},
}


def save_figures(results, folder):
    """Writes one figure for each model shape and number format with a scaling in N."""
    folder.mkdir(parents=True, exist_ok=True)
    with load_matplotlib().rc_context(STYLE):
        for shape, dtype in shapes(results):
            figure = _figure(results, shape, dtype)
            save(figure, folder / figure_name(results, shape, dtype))


def shapes(results):
    """(shape, dtype) of each model that has a figure: those measured at several N and batches."""
    rows = [row for row in results["rows"] if "seconds" in row]
    scaled = {_model(row) for row in rows if row["workload"] == "sampling"}
    batches = [_model(row) for row in rows if row["workload"] == "batch"]
    return [model for model in dict.fromkeys(batches) if model in scaled]


def _model(row):
    return row["shape"], row["dtype"]


def figure_name(results, shape, dtype):
    """The name of the figure's file, without its ending."""
    return f"performance-{results['about']['device']}-{shape}-{dtype}"


def _figure(results, shape, dtype):
    rows = [
        row
        for row in results["rows"]
        if (row["shape"], row["dtype"]) == (shape, dtype) and "out_of_memory" not in row
    ]
    title = f"{shape}, {dtype}, {results['about']['machine']}"
    figure, axes = panel_grid(title, None, 4, columns=2)
    sampling = [row for row in rows if row["workload"] == "sampling"]
    axes[0].set_title("seconds a call")
    _draw_n(axes[0], sampling)
    _draw_batch(axes[1], [row for row in rows if row["workload"] == "batch"])
    _draw_memory(axes[2], sampling, results["limits"][0]["budget_mib"])
    _draw_shares(axes[3], rows)
    entries = {f"plain, {name}": look for name, look in PLAIN_LOOKS.items()}
    draw_legend(figure, LOOKS | entries, columns=3)
    return figure


def _draw_n(axis, rows, key="seconds"):
    """``key`` of a Timing against N, both on log axes, ours and the plain ways'."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_xlabel("samples N a question")
    for variant, look in LOOKS.items():
        points = {row["n_samples"]: row[key] for row in rows if row["variant"] == variant}
        axis.plot(list(points), list(points.values()), **look)
    for name, look in PLAIN_LOOKS.items():
        timings = {row["n_samples"]: row["plain"].get(name) for row in rows}
        points = {n: timing[key] for n, timing in timings.items() if timing}
        axis.plot(list(points), list(points.values()), **look)
    _log_x(axis, sorted({row["n_samples"] for row in rows}))
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def _draw_memory(axis, rows, budget):
    """Memory of a call beyond what was in use, and the budget of the engine."""
    axis.set_title("memory of a call, MiB")
    _draw_n(axis, rows, "work_mib")
    axis.axhline(budget, color=GREY, linewidth=0.8)
    axis.annotate(
        "budget", (1, budget), xycoords=("axes fraction", "data"), ha="right", va="bottom"
    )


def _log_x(axis, ticks):
    axis.set_xscale("log")
    axis.set_xticks(ticks, map(str, ticks))
    axis.minorticks_off()


def _draw_batch(axis, rows):
    """Trajectories a second against the number of questions."""
    axis.set_title(f"trajectories a second, N = {rows[0]['n_samples']}")
    axis.set_xlabel("questions in a batch")
    questions = [row["questions"] for row in rows]
    rates = [row["questions"] * row["n_samples"] / row["seconds"] for row in rows]
    axis.plot(questions, rates, **LOOKS["noise"])
    _log_x(axis, questions)
    axis.set_ylim(bottom=0)


def _draw_shares(axis, rows):
    """How close each workload comes to the machine's limit; sampling at the largest N."""
    axis.set_title("share of the machine's limit, %")
    named = {_label(row): 100 * row["limit_share"] for row in rows if _label(row)}
    names = list(named)[::-1]
    axis.barh(names, [named[name] for name in names], color=METHOD_COLORS["best_of_n"], height=0.6)
    axis.set_xlim(0, 100)
    axis.tick_params(axis="y", labelsize=7)
    axis.grid(axis="x")
    axis.grid(visible=False, axis="y")


def _label(row):
    """A workload's short name, which rows of different sizes share; None: has no bar."""
    if row["workload"] in ("against products", "batch"):
        return None
    return row["variant"] if row["workload"] == "sampling" else row["workload"]
