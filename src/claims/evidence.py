"""What the finished runs of a Plan measured, as arrays (S, Q): S seeds, Q questions."""

import time
from functools import cache

import numpy as np

from src.claims.plan import BATCHES, PARTS, SHIPPED, SWEPT
from src.runs.finished_runs import FinishedRun, read_json
from src.runs.run_folder import git_commit
from src.runs.tables import chosen_answers
from src.search.choosers import trajectory_scores
from utils.answers import is_right
from utils.metrics import distinct_share, majority_vote, pairwise_auc, pass_at_k


class Evidence:
    """The measures of a Plan whose commands have finished; each from 0 to 1."""

    def __init__(self, plan):
        self.plan, self.setting, self._runs = plan, plan.setting, {}
        self._answers = cache(lambda folder, n: chosen_answers(self.run(folder), n))

    def run(self, folder):
        """The FinishedRun of a folder, read once."""
        if folder not in self._runs:
            self._runs[folder] = FinishedRun(folder)
        return self._runs[folder]

    def environment(self):
        """Where the runs that were read were made: versions, device, processes, all commits."""
        configs = [run.config for run in self._runs.values()]
        configs += [read_json(self.plan.annotated(part) / "config.json") for part in PARTS]
        same = {key: configs[0][key] for key in ("versions", "device", "processes")}
        commits = sorted({str(config["git_commit"])[:7] for config in configs})
        judged = {"date": time.strftime("%Y-%m-%d"), "judged_by": str(git_commit())[:7]}
        return same | {"git_commits": commits} | judged

    def _of_seeds(self, measure_of):
        """(S, Q) from a function of the seed that returns (Q,)."""
        return np.array([measure_of(seed) for seed in self.setting.seeds], dtype=float)

    def _of_questions(self, folder, measure_of):
        """(Q,) from a function of a run's record."""
        return [measure_of(record) for _, record in sorted(self.run(folder).records.items())]

    def _of_pool(self, benchmark, sampler, strength, measure_of):
        strength = self.setting.chosen[sampler] if strength is None else strength
        pool = self.plan.pool
        return self._of_seeds(
            lambda seed: self._of_questions(pool(benchmark, sampler, strength, seed), measure_of)
        )

    def greedy(self, benchmark):
        """Whether the greedy answer is right, (Q,)."""
        return np.array(self._of_questions(self.plan.greedy(benchmark), _right_vote), dtype=float)

    def coverage(self, benchmark, sampler, n, strength=None):
        """pass@n, the unbiased estimate from the whole pool of the chosen or a given strength."""

        def of_one(record):
            correct = record["correct"]
            return pass_at_k(len(correct), sum(correct), n)

        return self._of_pool(benchmark, sampler, strength, of_one)

    def vote(self, benchmark, n):
        """Whether the majority vote of the first n trajectories is right."""

        def of_one(record):
            return is_right(majority_vote(record["predictions"][:n]), record["answer"])

        return self._of_pool(benchmark, self.setting.sampler, None, of_one)

    def method(self, kind, benchmark, name, n):
        """Whether a method that chooses among n trajectories by a reward model is right."""

        def of_seed(seed):
            folder = self.plan.chosen(kind, benchmark, seed)
            answers = self._answers(folder, n)[name]
            return self._of_questions(folder, lambda r: is_right(answers[r["idx"]], r["answer"]))

        return self._of_seeds(of_seed)

    def beams(self, kind, benchmark):
        """Whether the answer of beam search is right."""
        beams = self.plan.beams
        return self._of_seeds(
            lambda seed: self._of_questions(beams(kind, benchmark, seed), _right_vote)
        )

    def auc(self, kind, benchmark):
        """How often a right trajectory of a question scores above a wrong one; NaN without both."""

        def of_one(record):
            scores = np.array([trajectory_scores(record, "sum")])
            return pairwise_auc(scores, np.array([record["correct"]]))

        chosen = self.plan.chosen
        return self._of_seeds(
            lambda seed: self._of_questions(chosen(kind, benchmark, seed), of_one)
        )

    def diversity(self, sampler, strength, name):
        """How different trajectories are on the swept benchmark, mean over questions and seeds.

        name: "distance" of their thoughts (src.search.diversity), or "distinct_answers", the share
        of distinct answers among all.
        """
        measures = {
            "distance": lambda record: record["thought_distance"],
            "distinct_answers": lambda record: distinct_share(record["predictions"]),
        }
        return float(self._of_pool(SWEPT, sampler, strength, measures[name]).mean())

    def _reached(self, sampler, name):
        """The diversity of each strength of a sampler's grid."""
        return [self.diversity(sampler, x, name) for x in self.setting.grid(sampler)]

    def common_diversity(self, name):
        """The largest diversity that both samplers reach."""
        return min(max(self._reached(sampler, name)) for sampler in self.setting.chosen)

    def coverage_at(self, sampler, name, diversity, n):
        """Coverage at a diversity, interpolated between two strengths; None beyond them.

        Diversity need not grow with the strength throughout: the strongest such pair counts.
        """
        grid, reached = self.setting.grid(sampler), self._reached(sampler, name)
        for k in reversed(range(1, len(grid))):
            low, high = reached[k - 1], reached[k]
            if min(low, high) <= diversity <= max(low, high) and low != high:
                weight = (diversity - low) / (high - low)
                before, after = (self.coverage(SWEPT, sampler, n, grid[i]) for i in (k - 1, k))
                return (1 - weight) * before + weight * after
        return None

    def same_batches(self, sampler):
        """Whether a question's answers are the same in other batches and processes."""
        n, strength = BATCHES["n_samples"], self.setting.chosen[sampler]

        def of_seed(seed):
            other = self.run(self.plan.other_batches(sampler, seed)).records
            pool = self.run(self.plan.pool(SWEPT, sampler, strength, seed)).records
            return [other[i]["texts"] == pool[i]["texts"][:n] for i in sorted(other)]

        return self._of_seeds(of_seed)

    def same_pools(self):
        """Whether a pool that grows while it is scored holds the answers of one sampled at once."""

        def of_seed(seed):
            grown = self.run(self.plan.chosen(SHIPPED, SWEPT, seed)).records
            pool = self.run(self.plan.scored_pool(SWEPT, seed)).records
            return [grown[i]["texts"] == pool[i]["texts"] for i in sorted(grown)]

        return self._of_seeds(of_seed)

    def alone(self, benchmark):
        """Whether the shipped reward model by itself, and the first trajectory, are right.

        Two arrays (S, Q), or None where the reward model can't answer.
        """
        of_seeds = [read_json(self.plan.alone(seed))[benchmark] for seed in self.setting.seeds]
        if not all(of_seeds):
            return None
        return tuple(np.array([of[key] for of in of_seeds]) for key in ("reward_model", "first"))


def _right_vote(record):
    return is_right(record["vote"], record["answer"])
