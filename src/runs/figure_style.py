"""How all figures look: colours, fonts, grids of panels, bands, legends."""

import math

from utils.errors import UserError

WIDTH, ROW_HEIGHT, COLUMNS = 7.0, 2.5, 3  # inches; panels in a row
# The colours of Okabe and Ito, which colour-blind readers can tell apart. One each method.
METHOD_COLORS = {
    "majority": "#000000",
    "best_of_n": "#0072B2",
    "weighted_vote": "#D55E00",
    "bayesian_vote": "#56B4E9",
    "reward_bayesian": "#CC79A7",
    "beam_search": "#009E73",
    "dvts": "#E69F00",
}
# What guides a search has a marker; the LatentRM's lookahead, too.
_GUIDE_MARKERS = {"": "D", "likelihood": "^", "agreement": "v", "lookahead": "s"}
# A kind of sampler has a hue, from the palest to the darkest; a larger parameter is darker.
SAMPLER_HUES = {
    "dropout": ("#8CCBF0", "#003E66"),
    "noise": ("#F2B63D", "#7A2E00"),
    "svp": ("#7FD6B6", "#00503A"),
    "weight_noise": ("#DDAACC", "#6B1F52"),
    "tokens": ("#BBBBBB", "#333333"),
}
OUTCOME_COLORS = {"right": "#0072B2", "wrong": "#E69F00"}
GREY = "#777777"
GREEDY_LOOK = {"color": GREY, "linestyle": ":", "zorder": 1}
COVERAGE_LOOK = {"color": "#BBBBBB", "linestyle": "-", "linewidth": 3, "zorder": 1}
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "pdf.fonttype": 42,  # text stays text
}


def load_matplotlib():
    """The library, loaded only where something is drawn: it takes half a second."""
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        mend = "pip install -r requirements.txt"
        raise UserError(f"matplotlib can't be loaded ({error}): {mend}") from None
    return matplotlib


def panel_grid(title, y_label, count, columns=COLUMNS, **share):
    """A Figure of ``count`` panels, at most ``columns`` in a row, and its axes in order.

    y_label: of the first panel of each row. share: which axes share a scale, as matplotlib's
    ``subplots`` takes it.
    """
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    size = (WIDTH, ROW_HEIGHT * rows + 0.5)
    figure = load_matplotlib().figure.Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    axes = figure.subplots(rows, columns, squeeze=False, **share).flatten()
    for axis in axes[::columns]:
        axis.set_ylabel(y_label)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def draw_curve(axis, x, points, color, style):
    """A line through points (K, 3), with a band from low to high."""
    axis.plot(x, points[:, 0], style, color=color, marker="o")
    draw_band(axis, x, points[:, 1], points[:, 2], color)


def draw_band(axis, x, low, high, color):
    """A band from low to high (K,) over x (K,); at a single x a line."""
    if len(x) == 1:  # a band has no width there
        axis.vlines(x, low, high, color=color, alpha=0.4)
    axis.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)


def set_log_axis(axis, ticks):
    """A log x axis with plain numbers at ticks times powers of 10: (1, 3) gives 1, 3, 10 .."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=ticks))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def set_size_axis(axis, sizes):
    """A log x axis with ticks at sizes of pools: as many as have room, with the largest."""
    axis.set_xscale("log", base=2)
    shown = sizes[:: -math.ceil(len(sizes) / 6)]
    axis.set_xticks(shown, [str(n) for n in shown])
    axis.minorticks_off()


def draw_legend(figure, entries, columns=4):
    """One legend below the panels. entries: {label: how its line looks}."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **look) for look in entries.values()]
    columns = min(len(entries), columns)
    figure.legend(handles, list(entries), loc="outside lower center", ncols=columns)


def greedy_entry(panels):
    """The legend's entry for greedy, as ``draw_legend`` takes it, where a panel has greedy runs."""
    return {"greedy": GREEDY_LOOK} if any(panel.greedy for panel in panels) else {}


def base_method(method):
    """The method without what guides a search: ``dvts`` of ``dvts likelihood``."""
    return method.partition(" ")[0]


def method_look(method):
    """How a method looks in every figure. Searches of one budget are no curve: they get no line."""
    base, _, variant = method.partition(" ")
    search = base in ("beam_search", "dvts")
    marker = _GUIDE_MARKERS[variant.partition(" ")[0]] if search else "o"
    line = "none" if search else "-"
    return {"color": METHOD_COLORS[base], "marker": marker, "linestyle": line}


def sampler_colors(samplers):
    """{label: colour} of samplers (kind, parameter, label): hue by kind, shade by rank.

    Several samplers, as noise+tokens, have the hue of the first.
    """
    samplers, colors = sorted(set(samplers)), {}
    for kind, ends in SAMPLER_HUES.items():
        labels = [label for other, _, label in samplers if other.split("+")[0] == kind]
        for rank, label in enumerate(labels):
            colors[label] = _between(*ends, (rank + 0.5) / len(labels))
    return colors


def _between(start, end, share):
    """The colour at a share of the way between two colours, ``#rrggbb``."""
    pairs = [(int(start[k : k + 2], 16), int(end[k : k + 2], 16)) for k in (1, 3, 5)]
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in pairs)
