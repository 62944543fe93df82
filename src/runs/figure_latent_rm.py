"""The figure "latent_rm": how well a reward model tells right trajectories from wrong ones."""

import math
from dataclasses import dataclass

import numpy as np

from src.runs.figure_data import benchmark_of, comparisons, ends_of, groups_of, title_of
from src.runs.figure_style import (
    GREEDY_LOOK,
    METHOD_COLORS,
    OUTCOME_COLORS,
    draw_band,
    draw_curve,
    draw_legend,
    method_look,
    panel_grid,
)
from src.search.choosers import trajectory_scores
from utils.answers import is_right
from utils.metrics import is_mixed, measured, question_auc, softmax, weighted_vote

QUARTILES = (25, 50, 75)
BINS = 5  # of the reliability curve, with equally many questions each
RARE = 0.05  # thoughts that at most this share of trajectories has are not shown
MOST_TICKS = 6  # thoughts that are numbered
X_LABELS = ("thought", "weight of the chosen answer, %", "thoughts scored")
Y_LABELS = ("reward, standardized", "accuracy, %", "AUC")
VOTES = ("majority", "weighted_vote")


@dataclass
class RewardPanel:
    """What the scores of one reward model tell on one benchmark.

    mixed: how many questions have right and wrong trajectories; rewards and AUC are of these.

    rewards: {"right", "wrong": (T, 3)}, the quartiles of the rewards of the T thoughts that more
    than RARE of the trajectories have. A reward only ranks the trajectories of one question (a
    contrastive loss fixes nothing else), so each is standardized over the question's trajectories,
    thought by thought.

    reliability: {"majority", "weighted_vote": (K, 4)}: mean confidence of K groups of questions,
    their accuracy, and the ends of its interval, in percent. Confidence is the share of the weight
    that the chosen answer gets: of softmax(score) over the pool for weighted_vote, of the votes for
    majority. A single trajectory's softmax is no probability of being right, since several may be
    right; an answer's share would be, where the weights are calibrated.

    auc (T, 3): how often the score of the first t thoughts is higher for a right than for a wrong
    trajectory of one question, and the ends of its interval.

    answer_rewards {"right", "wrong": (3,)}, full_auc (3,): the same of the reward of the answer and
    of the whole score, where the reward model scores answers, else None.
    """

    title: str
    mixed: int
    rewards: dict
    reliability: dict
    auc: np.ndarray
    answer_rewards: dict | None
    full_auc: np.ndarray | None


def reward_panel(pools):
    """The RewardPanel of some pools that differ in their seed; None without a mixed question."""
    score_by, questions = pools[0].settings["score_by"], sorted(pools[0].records)
    records = {idx: [run.records[idx] for run in pools] for idx in questions}
    mixed = {idx: [r for r in same if is_mixed(_corrects(r))] for idx, same in records.items()}
    mixed = {idx: same for idx, same in mixed.items() if same}
    if not mixed:
        return None
    of_mixed = [record for same in mixed.values() for record in same]
    lengths = [len(rewards) for record in of_mixed for rewards in record["scores"]]
    steps = int(np.quantile(lengths, 1 - RARE, method="higher"))
    aucs = [[_auc(record, score_by, steps) for record in same] for same in mixed.values()]
    auc = _means(np.array([np.mean(same, axis=0) for same in aucs]))  # (T + 1, 3)
    quartiles = _quartiles(of_mixed, steps)
    scores_answers = "answer_scores" in of_mixed[0]
    return RewardPanel(
        title=title_of(pools[0]),
        mixed=len(mixed),
        rewards={outcome: points[:steps] for outcome, points in quartiles.items()},
        reliability={vote: _reliability(records, vote, score_by) for vote in VOTES},
        auc=auc[:steps],
        answer_rewards={o: points[steps] for o, points in quartiles.items()}
        if scores_answers
        else None,
        full_auc=auc[steps] if scores_answers else None,
    )


def _corrects(record):
    return np.array(record["correct"])


def _means(values):
    """Mean over questions and the ends of its interval, (K, 3) of (Q, K)."""
    return np.array([ends_of(measured(column, scale=1, decimals=4)) for column in values.T])


def _padded(rewards, steps):
    """The first T rewards of N trajectories, (N, T), NaN where there are fewer thoughts."""
    padded = np.full((len(rewards), steps), np.nan)
    for row, of_trajectory in zip(padded, rewards, strict=True):
        row[: len(of_trajectory)] = of_trajectory[:steps]
    return padded


def _auc(record, score_by, steps):
    """AUC of one question by the first 1 to T thoughts, and by the whole score, (T + 1,).

    The score of a trajectory that has ended stays as it is.
    """
    prefixes = [
        trajectory_scores({"scores": [rewards[:t] for rewards in record["scores"]]}, score_by)
        for t in range(1, steps + 1)
    ]  # (T, N)
    scores = np.column_stack((*prefixes, trajectory_scores(record, score_by)))
    return question_auc(scores, _corrects(record))


def _quartiles(records, steps):
    """{"right", "wrong": (T + 1, 3)}: of standardized rewards of thoughts, and of the answer."""
    rewards = np.concatenate([_standardized(record, steps) for record in records])  # (M, T + 1)
    right = np.concatenate([_corrects(record) for record in records])  # (M,)
    of_outcomes = {"right": rewards[right], "wrong": rewards[~right]}
    return {o: np.array([_percentiles(c) for c in values.T]) for o, values in of_outcomes.items()}


def _standardized(record, steps):
    """The rewards of a question, (N, T + 1), the answer's last; NaN where nothing is to compare."""
    answers = record.get("answer_scores") or np.full(len(record["scores"]), np.nan)
    rewards = np.column_stack((_padded(record["scores"], steps), answers))
    rewards = np.ma.masked_invalid(rewards)
    return ((rewards - rewards.mean(axis=0)) / rewards.std(axis=0)).filled(np.nan)


def _percentiles(values):
    values = values[~np.isnan(values)]
    return np.percentile(values, QUARTILES) if values.size else np.full(len(QUARTILES), np.nan)


def _reliability(records, vote, score_by):
    """The reliability curve of one vote (see RewardPanel), (K, 4)."""
    seeds = [[_confidence(record, vote, score_by) for record in same] for same in records.values()]
    confidence, right = np.mean(seeds, axis=1).T  # (Q,) each
    groups = np.array_split(np.argsort(confidence, kind="stable"), min(BINS, len(confidence)))
    curve = [(100 * confidence[g].mean(), *ends_of(measured(right[g]))) for g in groups]
    return np.array(curve)


def _confidence(record, vote, score_by):
    """The share of the weight that the chosen answer of a vote has, and whether it is right."""
    predictions = record["predictions"]
    weights = np.ones(len(predictions))
    if vote == "weighted_vote":
        weights = softmax(trajectory_scores(record, score_by))
    chosen = weighted_vote(predictions, weights)
    if chosen is None:
        return 0.0, 0.0
    its_own = np.array([prediction == chosen for prediction in predictions])
    return weights[its_own].sum() / weights.sum(), float(is_right(chosen, record["answer"]))


def latent_rm_figures(runs):
    """[("latent_rm NAME", Figure)], NAME of reward model and sampler, of the largest pools."""
    figures = []
    for title, by_panel in comparisons(runs):
        pools = [run for same in by_panel.values() for run in same if _has_rewards(run)]
        panels = [reward_panel(_largest(same)) for same in groups_of(pools, benchmark_of).values()]
        panels = [panel for panel in panels if panel]
        if panels:
            figures.append((f"latent_rm {title}", _figure(title, panels)))
    return figures


def _has_rewards(run):
    """Whether trajectories have rewards of a LatentRM: not in a search, nor by a pool judge."""
    return not run.beams and all("scores" in record for record in run.records.values())


def _largest(pools):
    """Of some pools of one benchmark those with most trajectories, one a seed."""
    most = max(run.metrics["n_samples"] for run in pools)
    large = [run for run in pools if run.metrics["n_samples"] == most]
    return list({run.settings["seed"]: run for run in large}.values())


def _figure(title, panels):
    """A row a benchmark: rewards of right and wrong trajectories, reliability of votes, AUC."""
    figure, axes = panel_grid(title, "", len(Y_LABELS) * len(panels), len(Y_LABELS))
    rows = axes.reshape(-1, len(Y_LABELS))
    for panel, row in zip(panels, rows, strict=True):
        _draw_rewards(row[0], panel)
        _draw_reliability(row[1], panel)
        _draw_auc(row[2], panel)
        row[0].set_title(f"{panel.title}, {panel.mixed} with right and wrong trajectories")
        for axis, label in zip(row, Y_LABELS, strict=True):
            axis.set_ylabel(label)
    for axis, label in zip(rows[-1], X_LABELS, strict=True):
        axis.set_xlabel(label)
    entries = {f"{o}: median, quartiles": {"color": c} for o, c in OUTCOME_COLORS.items()}
    draw_legend(figure, entries | {vote: method_look(vote) for vote in VOTES})
    return figure


def _draw_rewards(axis, panel):
    steps = len(panel.auc)
    for shift, (outcome, color) in zip((-0.1, 0.1), OUTCOME_COLORS.items(), strict=True):
        points = panel.rewards[outcome]  # (T, 3)
        axis.plot(range(1, steps + 1), points[:, 1], color=color, marker="o")
        draw_band(axis, range(1, steps + 1), points[:, 0], points[:, 2], color)
        if panel.answer_rewards:
            low, median, high = panel.answer_rewards[outcome]
            _point(axis, _answer_place(steps) + shift, median, low, high, color)
    _axis_of_steps(axis, panel)


def _draw_reliability(axis, panel):
    axis.plot((0, 100), (0, 100), **GREEDY_LOOK)
    for vote in VOTES:
        confidence, value, low, high = panel.reliability[vote].T
        axis.plot(confidence, value, **method_look(vote))
        axis.vlines(confidence, low, high, color=METHOD_COLORS[vote], alpha=0.4)


def _draw_auc(axis, panel):
    steps = len(panel.auc)
    axis.axhline(0.5, **GREEDY_LOOK)
    draw_curve(axis, range(1, steps + 1), panel.auc, "black", "-")
    if panel.full_auc is not None:
        _point(axis, _answer_place(steps), *panel.full_auc, "black")
    _axis_of_steps(axis, panel)


def _point(axis, x, value, low, high, color):
    """A point with its interval that belongs to no line."""
    axis.errorbar(x, value, [[value - low], [high - value]], fmt="D", color=color, elinewidth=1.2)


def _axis_of_steps(axis, panel):
    """Thoughts 1 to T, and beside them the answer, where it has a reward."""
    steps = len(panel.auc)
    ticks = list(range(1, steps + 1, math.ceil(steps / MOST_TICKS)))
    labels = list(map(str, ticks))
    if panel.full_auc is not None:
        ticks, labels = [*ticks, _answer_place(steps)], [*labels, "answer"]
    axis.set_xticks(ticks, labels)


def _answer_place(steps):
    """Where the answer stands on an axis of T thoughts, with room for its name."""
    return steps + max(1.5, steps / 4)
