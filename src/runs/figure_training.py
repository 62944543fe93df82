"""The figure of trainings of backbones: mean loss and validation accuracy against time."""

import json

from src.runs.figure_style import METHOD_COLORS, draw_legend, panel_grid


def training_histories(folders):
    """{name: history} of the finished backbones in or below some folders, in their order."""
    found = {}
    for path in (path for folder in folders for path in sorted(folder.rglob("metrics.json"))):
        if not (path.parent / "recipe.yaml").is_file():
            continue  # a run, not a training
        history = json.loads(path.read_text(encoding="utf-8")).get("history") or []
        if history and "valid_accuracy" in history[0]:
            found[path.parent.resolve().name] = history
    return found


def training_figures(histories):
    """[("training", Figure)] of {name: history}; none without histories.

    A history is that of src.training.backbone_trainer: a dict for each validation, in order.
    Histories of earlier code have no loss.
    """
    if not histories:
        return []
    colors = dict(zip(histories, [*METHOD_COLORS.values()] * len(histories), strict=False))
    panels = {"mean loss since last validation": "train_loss", "loss in validation": "valid_loss",
              "validation, % solved greedily": "valid_accuracy"}  # fmt: skip
    every = [entry for history in histories.values() for entry in history]
    panels = {
        title: key
        for title, key in panels.items()
        if any(entry.get(key) is not None for entry in every)
    }
    figure, axes = panel_grid("training", None, len(panels))
    for axis, (title, key) in zip(axes, panels.items(), strict=True):
        axis.set_title(title)
        axis.set_xlabel("minutes of training")
        for name, history in histories.items():
            points = [entry for entry in history if entry.get(key) is not None]
            minutes, values = ([entry[of] for entry in points] for of in ("minutes", key))
            axis.plot(minutes, values, color=colors[name], marker="o", label=name)
        axis.set_ylim(bottom=0)
    draw_legend(figure, {name: {"color": color, "marker": "o"} for name, color in colors.items()})
    return [("training", figure)]
