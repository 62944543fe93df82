"""The numbers that src/runs/figures.py draws, in percent, each with its 95 % interval."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from src.runs.run_folder import LATER_FLAGS
from src.runs.tables import (
    choice_frame,
    chosen_answers,
    greedy_answers,
    greedy_runs,
    is_search,
    paired_difference,
    reward_model_name,
    with_sampler,
)
from src.sampling.samplers import EXTRA_DROPOUTS, STRENGTHS
from utils.answers import is_right
from utils.datasets import data_sha256, load_dataset
from utils.errors import UserError, warn
from utils.metrics import majority_vote, measured

# The settings that tell one sampler from another. Runs that differ in the seed alone are averaged.
# --signals and --stop_error change no sample.
_LATER = tuple(flag for flag in LATER_FLAGS if flag not in ("signals", "stop_error"))
_SAMPLER = (
    "sampling_by", "dropout_p", "noise_std", "dropout_prompt", "dropout_answer", "dropout_mask",
    *EXTRA_DROPOUTS, *_LATER, "latent_length", "max_new_tokens", "model_dtype",
)  # fmt: skip
NO_REWARD_MODEL = (None, None)
MOST_STEPS = 6  # longer problems are counted with these


@dataclass
class Curves:
    """Coverage and majority vote of one sampler on one benchmark.

    sampler: its kind, its parameter, and its label. sizes: the K values of N.
    coverage, vote (K, 3): value and the ends of its interval.
    """

    sampler: tuple
    sizes: list
    coverage: np.ndarray
    vote: np.ndarray


@dataclass
class CoveragePanel:
    """The curves of one model on one benchmark. greedy: the accuracies of its greedy runs."""

    title: str
    curves: list
    greedy: list


@dataclass
class CostPanel:
    """What each method reaches on one benchmark, and at which cost.

    methods: {method: (K, 5)} by growing cost: the generator's passes and milliseconds a question,
    accuracy and the ends of its interval. coverage (K, 3): the same costs and the pool's coverage.
    proposals: num_beams times num_beam_candidates of the searches, all values. greedy: as in
    CoveragePanel.
    """

    title: str
    methods: dict
    coverage: np.ndarray
    proposals: list
    greedy: list


@dataclass
class GainPanel:
    """Gains over greedy at the largest N on one benchmark, by the number of a problem's steps.

    size: this N. steps: {number of steps, at most MOST_STEPS: problems}, K of them.
    gains: {method: (K, 3)} in points. overall: {method: its gain over all problems}.
    """

    title: str
    size: int
    steps: dict
    gains: dict
    overall: dict


def groups_of(runs, key):
    """{key(run): its runs}, in the order of their first occurrence."""
    groups = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups


def model_of(run):
    return run.columns["model"], run.config["model_sha256"]


def benchmark_of(run):
    return run.columns["benchmark"], run.config["data_sha256"], run.columns["questions"]


def reward_model_of(run):
    """The reward model and its score, NO_REWARD_MODEL where a search has none."""
    prm_id = run.settings["prm_id"]
    return (prm_id, run.settings["score_by"]) if prm_id else NO_REWARD_MODEL


def sampler_of(run):
    return tuple(run.settings.get(name) for name in _SAMPLER)


def strength_of(run):
    """The parameter of a run's sampler, such as p or sigma; of several the first one's."""
    return run.settings[_strengths(run)[0]]


def _strengths(run):
    return [STRENGTHS[name] for name in run.settings["sampling_by"].split("+")]


def variant_of(run):
    """The sampler without its strength, (name, value) pairs with the kind, sampling_by, first."""
    others = _strengths(run)[1:]
    names = [name for name in _SAMPLER if name in others or name not in STRENGTHS.values()]
    return tuple((name, run.settings.get(name)) for name in names)


def sampler_labels(runs):
    """{sampler_of(run): label}, such as ``noise_std 0.8``, as tables show it.

    Samplers of one label get the settings in which they differ, as ``, latent_length 5``.
    """
    keys = {sampler_of(run): run.columns for run in runs}
    table = with_sampler(pd.DataFrame(list(keys.values())))
    labels = dict(zip(keys, table["sampler"], strict=True))
    for label in set(labels.values()):
        same = [key for key in keys if labels[key] == label]
        differ = [k for k in range(len(_SAMPLER)) if len({key[k] for key in same}) > 1]
        for key in same:
            labels[key] = ", ".join([label, *(f"{_SAMPLER[k]} {key[k]}" for k in differ)])
    return labels


def coverage_panels(runs):
    """{model: its CoveragePanels}: from sampling runs, and from the pools of choosing runs."""
    pools = [run for run in runs if not run.greedy and not run.beams]
    panels = {}
    for model, of_model in groups_of(pools, model_of).items():
        labels, by_benchmark = sampler_labels(of_model), groups_of(of_model, benchmark_of)
        panels[model] = [_coverage_panel(same, labels, runs) for same in by_benchmark.values()]
    return panels


def title_of(run):
    return f"{run.columns['benchmark']}, {run.columns['questions']} questions"


def _coverage_panel(pools, labels, runs):
    by_sampler = groups_of(pools, sampler_of)
    curves = [_curves(labels[key], same) for key, same in by_sampler.items()]
    curves.sort(key=lambda curve: curve.sampler)
    return CoveragePanel(title_of(pools[0]), curves, greedy_accuracies(pools, runs))


def greedy_accuracies(pools, runs):
    """The different accuracies of the greedy runs that belong to some pools."""
    keys = {run.model_key for run in pools}
    greedy = [run for run in runs if run.greedy and run.model_key in keys]
    return sorted({run.metrics["by_n"]["1"]["voting_accuracy"]["value"] for run in greedy})


def _curves(label, pools):
    """The curves of one sampler: the mean over seeds of each question, then over questions."""
    largest = {}  # of two pools with one seed the smaller one is the head of the larger
    for run in sorted(pools, key=lambda run: run.metrics["n_samples"]):
        largest[run.settings["seed"]] = run
    limit = min(run.metrics["n_samples"] for run in largest.values())
    sizes = sorted({int(n) for run in pools for n in run.metrics["by_n"] if int(n) <= limit})
    points = []
    for n in sizes:
        hits = np.mean([hits_of(run, n) for run in largest.values()], axis=0)  # (Q, 2) of (S, Q, 2)
        points.append([interval(hits[:, 0]), interval(hits[:, 1])])
    coverage, vote = np.array(points).swapaxes(0, 1)  # (K, 3) each
    sampler = (pools[0].settings["sampling_by"], strength_of(pools[0]), label)
    return Curves(sampler, sizes, coverage, vote)


def hits_of(run, n):
    """Whether the first n answers cover the right one, and whether their vote is right, (Q, 2)."""
    hits = []
    for _, record in sorted(run.records.items()):
        head, answer = record["predictions"][:n], record["answer"]
        covered = any(is_right(number, answer) for number in head)
        hits.append((float(covered), float(is_right(majority_vote(head), answer))))
    return hits


def interval(values):
    """[value, low, high] of the mean of some values (Q,), in percent."""
    return ends_of(measured(values))


def ends_of(measure):
    return [measure["value"], measure["low"], measure["high"]]


def comparisons(runs):
    """[(title, {panel's title: choosing runs of one benchmark and seed})].

    A title names the reward model and the sampler. The runs are pools and searches. A search
    without a reward model is beside all reward models of its sampler.
    """
    choosing, compared = [run for run in runs if run.chooses], []
    for of_model in groups_of(choosing, model_of).values():
        labels = sampler_labels(of_model)
        for sampler, same in groups_of(of_model, sampler_of).items():
            by_reward_model = groups_of(same, reward_model_of)
            free = by_reward_model.pop(NO_REWARD_MODEL, [])
            for judged in by_reward_model.values():
                name = reward_model_name(judged[0].settings)
                compared.append((f"{name}, {labels[sampler]}", _by_panel(judged + free)))
            if free and not by_reward_model:
                compared.append((f"no reward model, {labels[sampler]}", _by_panel(free)))
    return compared


def _by_panel(runs):
    """{title: runs of one benchmark and seed}; the seed is in the title where there are several."""
    seeds = {run.settings["seed"] for run in runs}
    seed = (lambda run: f", seed {run.settings['seed']}") if len(seeds) > 1 else (lambda run: "")
    panels = groups_of(runs, lambda run: (benchmark_of(run), run.settings["seed"]))
    return {title_of(same[0]) + seed(same[0]): same for same in panels.values()}


def cost_panel(title, choosing, runs):
    """The CostPanel of some runs; None where no cost was measured (a saved pool)."""
    frame = choice_frame(choosing)
    if "latent_passes" not in frame:
        return None
    frame = frame.dropna(subset="latent_passes").drop_duplicates(["method", "N"])
    frame["passes"] = frame["latent_passes"] + frame["answer_tokens"]
    frame = frame.sort_values(["passes", "ms"])
    columns = ["passes", "ms", "accuracy", "accuracy_low", "accuracy_high"]
    methods = {
        method: rows[columns].to_numpy(dtype=float)
        for method, rows in frame.groupby("method", observed=True)
    }
    votes, beams = frame[frame["method"] == "majority"], frame[frame["method"].map(is_search)]
    coverage = votes[[*columns[:2], "coverage"]].to_numpy(dtype=float)
    proposals = sorted(set(beams["budget"]))
    return CostPanel(title, methods, coverage, proposals, greedy_accuracies(choosing, runs))


def gain_panel(title, choosing, runs):
    """The GainPanel of the largest pool among some runs, or None.

    There is none without a pool, without greedy answers to the same questions, without steps in
    the data, or where the data file is not the one that was answered, which gives a warning.
    """
    pools = [run for run in choosing if not run.beams]
    pool = max(pools, key=lambda run: run.metrics["n_samples"], default=None)
    greedy = greedy_runs(runs)
    if pool is None or pool.model_key not in greedy:
        return None
    try:
        steps = steps_of(pool)
    except UserError as error:
        warn(f"no gains by steps: {error}")
        return None
    if not any(steps.values()):
        return None
    base, size = greedy_answers(greedy[pool.model_key]), pool.metrics["n_samples"]
    chosen = chosen_answers(pool, size)
    groups = {n: [i for i in pool.records if steps[i] == n] for n in sorted(set(steps.values()))}

    def gain(method, questions):
        records = {i: pool.records[i] for i in questions}
        return ends_of(paired_difference(records, chosen[method], base))

    gains = {m: np.array([gain(m, group) for group in groups.values()]) for m in chosen}
    overall = {method: gain(method, pool.records)[0] for method in chosen}
    counts = {n: len(group) for n, group in groups.items()}
    return GainPanel(title, size, counts, gains, overall)


def steps_of(run):
    """{idx: number of steps, at most MOST_STEPS} of a run's questions.

    Raises UserError where the data file is missing or has changed.
    """
    path = run.settings["data_path"]
    rows = load_dataset(path)
    if data_sha256(path) != run.config["data_sha256"]:
        raise UserError(f"{path} is not the file that {run.folder} answered")
    return {i: min(len(rows[i]["steps"]), MOST_STEPS) for i in run.records}


def best_methods(panels, methods, count):
    """The vote and, of some methods, the ``count`` others with the largest mean gain."""
    others = [m for m in methods if all(m in panel.overall for panel in panels) and m != "majority"]
    mean = {method: np.mean([panel.overall[method] for panel in panels]) for method in others}
    return ["majority", *sorted(others, key=lambda method: -mean[method])[:count]]
