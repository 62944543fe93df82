"""What benchmarks.choices and benchmarks.samplers share: arguments, tables and figures."""

import argparse
from pathlib import Path

from src.runs.figure_style import STYLE, draw_legend, load_matplotlib, panel_grid


def parser_of(name, doc):
    """The parser of a command benchmarks.NAME, of which ``doc`` is the help."""
    parser = argparse.ArgumentParser(prog=f"benchmarks.{name}", description=doc)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs", name))
    return parser


def markdown(lines):
    """A markdown table of lines of cells, the first of which is the head."""
    head, *body = lines
    rows = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def interval_cell(row, prefix="", sign=""):
    """``83.4 [80.1, 86.5]`` of a row's columns value, low and high; sign "+": ``+3.1 [..]``."""
    value, low, high = (row[prefix + key] for key in ("value", "low", "high"))
    return f"{value:{sign}.1f} [{low:.1f}, {high:.1f}]"


def save_panels(path, title, y_label, panels, draw_panel, entries):
    """Writes a figure of a panel for each of ``panels``, {its title: what it shows}.

    draw_panel(axis, what it shows). entries: as src.runs.figure_style.draw_legend takes them.
    """
    with load_matplotlib().rc_context(STYLE):
        figure, axes = panel_grid(title, y_label, len(panels))
        for axis, (name, shown) in zip(axes, panels.items(), strict=True):
            axis.set_title(name)
            draw_panel(axis, shown)
        draw_legend(figure, entries)
        figure.savefig(path, dpi=200)
