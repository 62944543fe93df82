"""What each method reaches at each size, and what that costs, over several seeds.

A method is a chooser of src.search.choosers, "coverage" of the pool, or a search with its guide as
src/runs/tables.py names it. Its size N is the number of trajectories, of a search num_beams times
num_beam_candidates. Q questions.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from src.runs.figure_data import benchmark_of, groups_of, model_of, sampler_labels, sampler_of
from src.runs.tables import is_search, pool_cost, search_answers, search_cost, search_variant
from src.search.choosers import CHOOSERS
from src.search.voting import aggregate
from utils.answers import is_right
from utils.errors import UserError

COSTS = ("ms", "passes")  # milliseconds; thoughts and answer tokens of the generator
GREEDY = ("greedy", 1)  # its key among Points
BY = " by "  # between a method and its sampler


@dataclass
class Point:
    """A method at one size: the mean over ``seeds`` seeds.

    hits (Q,): whether its answer is right. size: N, of a search as ``4 x 4``. cost: of a question,
    {one of COSTS: number}; empty for saved pools.
    """

    hits: np.ndarray
    size: str
    cost: dict
    seeds: int


def all_points(runs):
    """{(model, benchmark): {(method, N): Point}} of finished choosing runs.

    Where the pools of a model have several samplers, the names of all methods end with their own:
    ``majority by noise``, or ``majority by noise_std 0.8`` beside another strength; so do those of
    searches with several samplers. Raises UserError where runs of one name do not belong together.
    """
    pools, searches = ([r for r in runs if bool(r.beams) == is_beams] for is_beams in (False, True))
    suffixes, found = _suffixes(pools) | _suffixes(searches), {}
    names = groups_of(runs, lambda run: (run.columns["model"], run.columns["benchmark"]))
    for name, same in names.items():
        first, *others = groups_of(same, lambda run: (model_of(run), benchmark_of(run))).values()
        if others:
            fault = "differ in checkpoint files or questions; keep those of one kind"
            raise UserError(f"{first[0].folder} and {others[0][0].folder}: {fault}")
        found[name] = points_of(same, suffixes)
        if GREEDY not in found[name]:
            fault = f"no best-of-N run of {' on '.join(name)} has the greedy answers"
            raise UserError(f"{fault}; give --signals true")
    return found


def _suffixes(runs):
    """{folder of a run: what the names of its methods say of the sampler}."""
    suffixes, largest = {}, 0
    for same in groups_of(runs, lambda run: run.columns["model"]).values():
        labels = sampler_labels(same)
        samplers = {sampler_of(run): run.columns["sampler"] for run in same}
        kinds, largest = Counter(samplers.values()), max(largest, len(samplers))
        for run in same:
            kind = run.columns["sampler"]
            suffixes[run.folder] = BY + (kind if kinds[kind] == 1 else labels[sampler_of(run)])
    return suffixes if largest > 1 else dict.fromkeys(suffixes, "")


def points_of(runs, suffixes):
    """{(method, N): Point} of the runs of one model and benchmark.

    Runs of several reward models may share a pool: what reads none is taken from the first of them.
    """
    found = defaultdict(dict)  # {(method, N): {seed: (folder, size, hits, cost)}}
    for run in sorted(runs, key=_is_saved):  # saved pools have no cost
        for name, n, *measured in (_of_search if run.beams else _of_pool)(run):
            key = (name, n) if name == "greedy" else (name + suffixes[run.folder], n)
            first = found[key].setdefault(run.settings["seed"], (run.folder, *measured))
            if first[0] != run.folder and _needs_reward_model(name):
                fault = f"both are {key[0]} of {n} trajectories with one seed; keep one of them"
                raise UserError(f"{first[0]} and {run.folder}: {fault}")
    return {key: _mean(list(of_seeds.values())) for key, of_seeds in found.items()}


def _is_saved(run):
    return run.settings.get("pool") is not None


def _needs_reward_model(method):
    """Whether what it chooses depends on more than the pool and the backbone, or it is a search."""
    parts = CHOOSERS[method].parts if method in CHOOSERS else ()
    return is_search(method) or bool({"reward", "judge"} & set(parts))


def _mean(of_seeds):
    _, sizes, hits, costs = zip(*of_seeds, strict=True)
    known = [key for key in COSTS if all(key in cost for cost in costs)]
    cost = {key: round(float(np.mean([cost[key] for cost in costs])), 2) for key in known}
    return Point(np.mean(hits, axis=0), sizes[0], cost, len(of_seeds))


def _of_pool(run):
    """(method, N, size, hits, cost) of all choosers at all sizes of a best-of-N run."""
    records, score_by = _records(run), run.settings["score_by"]
    for n in map(int, run.metrics["by_n"]):
        spent = _spent(run, n)
        chosen = [aggregate(record, n, score_by) for record in records]
        for name in chosen[0]:
            if name == "greedy":
                size, cost = 1, _greedy_cost(spent)
            else:
                size, cost = n, _cost(pool_cost(spent, CHOOSERS[name].parts))
            yield name, size, str(size), _hits([c[name] for c in chosen], records), cost
        covered = np.array([any(record["correct"][:n]) for record in records], dtype=float)
        yield "coverage", n, str(n), covered, _cost(pool_cost(spent, ()))


def _of_search(run):
    """The same of a search: its best trajectory and, of DVTS, the votes of its leaves."""
    records, cost = _records(run), _cost(search_cost(_spent(run, run.metrics["n_samples"])))
    beams, proposals = run.settings["num_beams"], run.settings["num_beam_candidates"]
    for name, answers in search_answers(run).items():
        hits = _hits([answers[i] for i in sorted(run.records)], records)
        size = f"{beams} x {proposals}"
        yield name + search_variant(run), beams * proposals, size, hits, cost


def _records(run):
    return [run.records[i] for i in sorted(run.records)]


def _hits(answers, records):
    pairs = zip(answers, records, strict=True)
    return np.array([is_right(number, record["answer"]) for number, record in pairs], dtype=float)


def _spent(run, n):
    return run.metrics["speed"].get("per_question", {}).get(str(n), {})


def _cost(cost):
    """COSTS of what src/runs/tables.py says of a cost."""
    return cost and {"ms": cost["ms"], "passes": cost["latent_passes"] + cost["answer_tokens"]}


def _greedy_cost(spent):
    """What the greedy trajectory of a question costs, which its pool does not need."""
    if "greedy_seconds" not in spent:
        return {}
    passes = spent.get("greedy_latent_steps", 0) + spent.get("greedy_tokens", 0)
    return {"ms": 1000 * spent["greedy_seconds"], "passes": passes}


def affordable(points, method, kind, budget):
    """The largest N at which a method costs no more than a budget; None where none does.

    kind: one of COSTS. Sizes are not interpolated. Greedy always is affordable.
    """
    limit = float("inf") if method == "greedy" else budget
    sizes = [
        n
        for (name, n), point in points.items()
        if name == method and kind in point.cost and point.cost[kind] <= limit
    ]
    return max(sizes, default=None)
