"""The claims of You et al. (arXiv 2510.07745) and of this project, and what decides each.

A claim's ``compare`` makes its comparisons {part: [Comparison]} from the Evidence. The statements
and the comparisons stand here before anything is run; a note says where results were known before.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from src.claims.plan import JUDGE, JUDGE_SIZES, PAPER, SHIPPED, SWEPT
from src.claims.setting import BEAMS, SIZES
from src.claims.verdicts import compare

LARGEST = SIZES[-1]
BUDGET = BEAMS[0] * BEAMS[1]  # N of best-of-N that beam search is compared with
BEAM_SEARCH = f"beam search {BEAMS[0]} x {BEAMS[1]}"
ABLATION = 8  # N at which the paper compares its ablations
TRAINED = ("pools", "annotated", "reward_models", "chosen")
DIVERSITIES = {  # measures of src.claims.evidence.Evidence.diversity
    "distance": "thoughts {:.1f} apart",
    "distinct_answers": "{:.0%} distinct answers",
}


@dataclass(frozen=True)
class Claim:
    """A statement, the figures that its author gives for it, and the comparisons that decide it.

    compare: from the Evidence to {title of a table: its Comparisons}, none where the claim can't be
    tested. runs: the commands that it needs, keys of Plan.commands. figures: the kinds of figures
    that show it. note: what a reader should know before the verdict.
    """

    name: str
    statement: str
    figures_given: str
    compare: Callable
    runs: tuple
    figures: tuple = ()
    note: str = ""


def coverage_grows(evidence):
    grows, shrinks = [], []
    for benchmark in evidence.setting.benchmarks:
        for sampler in evidence.setting.chosen:
            one, four, sixteen, most = (
                evidence.coverage(benchmark, sampler, n) for n in (1, 4, 16, LARGEST)
            )
            where = f"{benchmark}, {sampler}"
            names = ("coverage at 64", "at 16")
            grows.append(compare(where, "rises", names, most, sixteen))
            names = ("gain from 1 to 4", "from 16 to 64")
            shrinks.append(compare(where, "rises", names, four - one, most - sixteen))
    return {"It still grows at the end": grows, "A factor of 4 in N brings less and less": shrinks}


def dropout_covers_more(evidence):
    rows = []
    for benchmark in evidence.setting.benchmarks:
        dropout, noise = (
            np.mean([evidence.coverage(benchmark, sampler, n) for n in SIZES[1:]], axis=0)
            for sampler in ("dropout", "noise")
        )
        rows.append(compare(benchmark, "greater", ("dropout", "noise"), dropout, noise))
    return {"Coverage, mean of N = 2, 4, .. 64": rows}


def moderate_is_best(evidence):
    peaks = []
    for sampler, chosen in evidence.setting.chosen.items():
        grid = evidence.setting.grid(sampler)
        best = evidence.coverage(SWEPT, sampler, LARGEST)
        for which, strength in (("weakest", grid[0]), ("strongest", grid[-1])):
            other = evidence.coverage(SWEPT, sampler, LARGEST, strength)
            names = (f"{chosen:g}", f"{which}, {strength:g}")
            peaks.append(compare(f"{SWEPT}, {sampler}", "greater", names, best, other))
    falls = [row for name in DIVERSITIES for row in _falls(evidence, name)]
    return {
        "Both peak at a moderate diversity (coverage at 64)": peaks,
        "Coverage at 64 falls more with dropout, at the highest diversity that both reach": falls,
    }


def _falls(evidence, name):
    """The comparison of both samplers' falls from their chosen strength, if both get there."""
    diversity, falls = evidence.common_diversity(name), []
    for sampler in ("dropout", "noise"):
        there = evidence.coverage_at(sampler, name, diversity, LARGEST)
        if there is None:
            return []
        falls.append(evidence.coverage(SWEPT, sampler, LARGEST) - there)
    where = f"{SWEPT}, {DIVERSITIES[name].format(diversity)}"
    return [compare(where, "greater", ("dropout falls by", "noise by"), *falls)]


def paper_model_beats_vote(evidence):
    rows = []
    for benchmark in ("Test", "Hard"):
        vote = evidence.vote(benchmark, BUDGET)
        best = evidence.method(PAPER, benchmark, "best_of_n", BUDGET)
        rows.append(compare(benchmark, "greater", (f"best-of-{BUDGET}", "vote"), best, vote))
        beams = evidence.beams(PAPER, benchmark)
        rows.append(compare(benchmark, "greater", (BEAM_SEARCH, "vote"), beams, vote))
    return {f"Against the majority vote of {BUDGET}": rows}


def _ablation(other, names):
    def comparisons(evidence):
        rows = []
        for benchmark in ("Test", "Hard"):
            pair = [
                evidence.method(kind, benchmark, "best_of_n", ABLATION) for kind in (PAPER, other)
            ]
            rows.append(compare(benchmark, "greater", names, *pair))
        return {f"Best-of-{ABLATION}": rows}

    return comparisons


def random_is_worse(evidence):
    rows = []
    for n in (ABLATION, BUDGET):
        for benchmark in ("Test", "Hard"):
            vote = evidence.vote(benchmark, n)
            head = evidence.method("random-head", benchmark, "best_of_n", n)
            names = ("vote", "random head")
            rows.append(compare(f"{benchmark}, N = {n}", "greater", names, vote, head))
    return {"Majority vote against best-of-N by a random head": rows}


def beams_match(evidence):
    names = (f"best-of-{BUDGET}", BEAM_SEARCH)
    rows = []
    for benchmark, rule in (("Test", "close"), ("MultiArith", "close"), ("Hard", "greater")):
        best = evidence.method(PAPER, benchmark, "best_of_n", BUDGET)
        rows.append(compare(benchmark, rule, names, best, evidence.beams(PAPER, benchmark)))
    return {"At the same budget of trajectories": rows}


def samples_are_the_same(evidence):
    names = ("the same", "all")
    rows = [
        compare(f"{SWEPT}, {sampler}, other batches", "same", names, same, 1.0)
        for sampler in evidence.setting.chosen
        for same in [evidence.same_batches(sampler)]
    ]
    rows.append(compare(f"{SWEPT}, pool that grows", "same", names, evidence.same_pools(), 1.0))
    return {"Questions whose answers are all the same": rows}


def bayesian_vote_wins(evidence):
    rows = []
    for benchmark in evidence.setting.benchmarks:
        bayesian = evidence.method(SHIPPED, benchmark, "bayesian_vote", LARGEST)
        names = ("Bayesian vote", "majority vote")
        vote = evidence.vote(benchmark, LARGEST)
        rows.append(compare(benchmark, "greater", names, bayesian, vote))
    return {f"Of {LARGEST} trajectories": rows}


def shipped_model_wins(evidence):
    over_vote, over_greedy = [], []
    for benchmark in evidence.setting.benchmarks:
        vote, greedy = evidence.vote(benchmark, LARGEST), evidence.greedy(benchmark)
        for method, name in (("best_of_n", "best-of-64"), ("weighted_vote", "weighted vote")):
            answers = evidence.method(SHIPPED, benchmark, method, LARGEST)
            over_vote.append(compare(benchmark, "greater", (name, "vote"), answers, vote))
            over_greedy.append(compare(benchmark, "greater", (name, "greedy"), answers, greedy))
    return {
        f"Against the majority vote of {LARGEST}": over_vote,
        "Against one greedy trajectory": over_greedy,
    }


def shipped_model_solves(evidence):
    over_trajectory, over_greedy = [], []
    for benchmark in evidence.setting.benchmarks:
        found = evidence.alone(benchmark)
        if found is not None:
            names = ("its own answer", "the trajectory's")
            over_trajectory.append(compare(benchmark, "greater", names, *found))
            names, greedy = ("its own answer", "greedy"), evidence.greedy(benchmark)
            over_greedy.append(compare(benchmark, "greater", names, found[0], greedy))
    return {
        "Against the sampled trajectory whose thoughts it reads": over_trajectory,
        "Against the generator's greedy answer": over_greedy,
    }


def thoughts_tell_little(evidence):
    rows = [
        compare(b, "greater", ("bar", "its AUC"), 0.6, evidence.auc(PAPER, b))
        for b in evidence.setting.benchmarks
    ]
    return {"Pairwise AUC of right and wrong trajectories of one question, x 100": rows}


def _judge_beats(name, other):
    """The pool judge against ``other(evidence, benchmark, n)``, where there is a judge."""

    def comparisons(evidence):
        benchmarks = evidence.setting.benchmarks if evidence.setting.judge else ()
        rows = []
        for n in JUDGE_SIZES:
            for benchmark in benchmarks:
                judged = evidence.method(JUDGE, benchmark, "pool_judge", n)
                pair = (judged, other(evidence, benchmark, n))
                where = f"{benchmark}, N = {n}"
                rows.append(compare(where, "greater", ("pool judge", name), *pair))
        return {"From the answers of a pool of N trajectories": rows}

    return comparisons


PAPER_CLAIMS = (
    Claim(
        "1",
        "Coverage grows monotonically with N for both samplers, with diminishing returns.",
        "no figures in the text",
        coverage_grows,
        ("pools",),
        ("coverage",),
        "pass@N cannot fall as N grows, and each further trajectory adds less by construction. "
        "What can fail: that coverage still rises from 16 to 64, and that it rises less there than "
        "from 1 to 4.",
    ),
    Claim(
        "2",
        "MC dropout reaches a higher coverage than additive Gaussian noise at nearly all N.",
        "no figures in the text",
        dropout_covers_more,
        ("pools",),
        ("coverage",),
        "Judged by the mean over N, so that no single N decides. Each sampler has the strength "
        "that its checkpoint names for coverage.",
    ),
    Claim(
        "3",
        "Both samplers peak at a moderate diversity; at a high diversity noise keeps its coverage "
        "while that of dropout falls.",
        "no figures in the text",
        moderate_is_best,
        ("pools", "maps"),
        ("diversity", "map"),
        "Moderate is the strength that the checkpoint names for coverage; weakest and strongest "
        "are a quarter and three times of it. Diversity is measured twice: by the mean distance "
        "between the thoughts of two trajectories, as in the paper, which for noise is mostly the "
        "distance of the noise itself; and by the share of distinct answers.",
    ),
    Claim(
        "4",
        "Best-of-N and beam search with LatentRM beat the majority vote.",
        "COCONUT, N = 32: GSM8K Test vote 33.6, best-of-N 35.4, beam search about 35; GSM8K Hard "
        "6.1, 7.8, about 7",
        paper_model_beats_vote,
        (*TRAINED, "beams"),
        ("latent_rm",),
    ),
    Claim(
        "5",
        "The contrastive loss beats BCE.",
        "best-of-8: GSM8K Test 35.4 against 33.5, Hard 7.8 against 7.4",
        _ablation("bce-rollout", ("contrastive", "BCE")),
        TRAINED,
    ),
    Claim(
        "6",
        "Labels by rollouts beat labels by the outcome.",
        "best-of-8: GSM8K Test 35.4 against 30.7, Hard 7.8 against 6.0",
        _ablation("contrastive-outcome", ("rollout labels", "outcome labels")),
        TRAINED,
    ),
    Claim(
        "7",
        "A random head is worse than the majority vote.",
        "GSM8K Test 28.9 against 33.6",
        random_is_worse,
        TRAINED,
        (),
        "The paper does not say at which N; its vote of 33.6 is that of 32.",
    ),
    Claim(
        "8",
        "Beam search matches best-of-N on Test and MultiArith and trails it on Hard.",
        "no further figures in the text",
        beams_match,
        (*TRAINED, "beams"),
        (),
        "With few questions the interval alone is wider than these 2 points.",
    ),
)
OWN_CLAIMS = (
    Claim(
        "A",
        "A sample is the same whatever the batch, the number of samples and of processes.",
        "",
        samples_are_the_same,
        ("pools", "other_batches", "chosen"),
        (),
        "The pools of 64 were sampled in large batches by several processes, the others in batches "
        "of 7, N = 16, by one process. The last row compares pools that grew from N = 1 to 64 "
        "while they were scored. The random numbers are the same by design; sums of other batches "
        "round differently, which could change an answer whose best two tokens are nearly level.",
    ),
    Claim(
        "B",
        "The Bayesian vote is more accurate than the majority vote.",
        "",
        bayesian_vote_wins,
        ("pools", "chosen"),
    ),
    Claim(
        "C",
        "The shipped reward model beats the majority vote and one greedy trajectory.",
        "",
        shipped_model_wins,
        ("greedy", "pools", "chosen"),
        ("cost", "gains"),
    ),
    Claim(
        "D",
        "The shipped reward model is a better solver than the generator.",
        "",
        shipped_model_solves,
        ("greedy", "pools"),
        (),
        "It reads the thoughts of one trajectory and answers by itself, without any choice. Where "
        "it does so better than the generator, its gain over the vote is no evidence that scores "
        "of thoughts beat the vote.",
    ),
    Claim(
        "E",
        "The scores of the paper's LatentRM hardly tell right trajectories from wrong ones: their "
        "AUC is below 0.60.",
        "",
        thoughts_tell_little,
        TRAINED,
        ("latent_rm",),
        "This would explain why it does not beat the vote here. 0.5 is chance; the bar was set "
        "before the run, on what earlier models had reached (docs/latent_rm.md). Only questions "
        "with right and wrong trajectories count.",
    ),
    Claim(
        "F",
        "The pool judge, which reads the frozen generator, beats the majority vote.",
        "",
        _judge_beats("vote", lambda evidence, benchmark, n: evidence.vote(benchmark, n)),
        ("pools", "chosen"),
        (),
        "The judge scores the distinct answers of a pool, by what the generator computes when it "
        "reads each of them and by the votes; it can't write one of its own (docs/choosing.md). It "
        "was trained on other questions. Its results on these questions, with these seeds, were "
        "known when claims F and G were written.",
    ),
    Claim(
        "G",
        "The pool judge beats one greedy trajectory.",
        "",
        _judge_beats("greedy", lambda evidence, benchmark, _: evidence.greedy(benchmark)),
        ("greedy", "pools", "chosen"),
        (),
        "Hard is too small to decide; docs/choosing.md has thousands of problems like it.",
    ),
)
CLAIMS = PAPER_CLAIMS + OWN_CLAIMS
