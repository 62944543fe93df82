"""The claims of You et al. (arXiv 2510.07745) and of this project, and what decides each.

A claim's ``compare`` makes its comparisons {part: [Comparison]} from the Evidence. The statements
and the comparisons stand here before anything is run.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from src.claims.plan import PAPER, SHIPPED, SWEPT
from src.claims.setting import BEAMS, SIZES
from src.claims.verdicts import compare

LARGEST = SIZES[-1]
BUDGET = BEAMS[0] * BEAMS[1]  # N of best-of-N that beam search is compared with
TRAINED = ("pools", "annotated", "reward_models", "chosen")
DIVERSITIES = {  # measures of src.claims.evidence.Evidence.diversity
    "distance": "thoughts are {:.1f} apart",
    "distinct_answers": "{:.0%} of the answers are distinct",
}
ABLATION = 8  # N at which the paper compares its ablations


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
            grows.append(compare(f"{where}: coverage at 64 over 16", "rises", most, sixteen))
            gains = (four - one, most - sixteen)
            label = f"{where}: gain from 1 to 4 over gain from 16 to 64"
            shrinks.append(compare(label, "rises", *gains))
    return {"It still grows at the end": grows, "Returns diminish": shrinks}


def dropout_covers_more(evidence):
    rows = []
    for benchmark in evidence.setting.benchmarks:
        dropout, noise = (
            np.mean([evidence.coverage(benchmark, sampler, n) for n in SIZES[1:]], axis=0)
            for sampler in ("dropout", "noise")
        )
        rows.append(
            compare(
                f"{benchmark}: dropout over noise, mean of N = 2 to 64", "greater", dropout, noise
            )
        )
    return {"Coverage, each sampler with its strength chosen on validation data": rows}


def moderate_is_best(evidence):
    rows = []
    for sampler, chosen in evidence.setting.chosen.items():
        grid = evidence.setting.grid(sampler)
        best = evidence.coverage(SWEPT, sampler, LARGEST)
        for name, strength in (("weakest", grid[0]), ("strongest", grid[-1])):
            other = evidence.coverage(SWEPT, sampler, LARGEST, strength)
            label = f"{SWEPT}, {sampler}: {chosen:g} over the {name}, {strength:g}"
            rows.append(compare(label, "greater", best, other))
    high = []
    for name in DIVERSITIES:
        diversity = evidence.common_diversity(name)
        noise, dropout = (
            evidence.coverage_at(sampler, name, diversity, LARGEST)
            for sampler in ("noise", "dropout")
        )
        label = f"{SWEPT}: noise over dropout where {DIVERSITIES[name].format(diversity)}"
        high.append(compare(label, "greater", noise, dropout))
    return {
        "Both peak at a moderate diversity (coverage at 64)": rows,
        "At the highest diversity that both reach, noise keeps its coverage (at 64)": high,
    }


def paper_model_beats_vote(evidence):
    best, beams = [], []
    for benchmark in ("Test", "Hard"):
        vote = evidence.vote(benchmark, BUDGET)
        of_pool = evidence.method(PAPER, benchmark, "best_of_n", BUDGET)
        best.append(
            compare(f"{benchmark}: best-of-{BUDGET} over the vote", "greater", of_pool, vote)
        )
        searched = evidence.beams(PAPER, benchmark)
        label = f"{benchmark}: beam search {BEAMS[0]} x {BEAMS[1]} over the vote"
        beams.append(compare(label, "greater", searched, vote))
    return {f"Against the majority vote of {BUDGET}": best + beams}


def _ablation(other, name):
    def comparisons(evidence):
        rows = []
        for benchmark in ("Test", "Hard"):
            first, second = (
                evidence.method(kind, benchmark, "best_of_n", ABLATION) for kind in (PAPER, other)
            )
            label = f"{benchmark}: {name}, best-of-{ABLATION}"
            rows.append(compare(label, "greater", first, second))
        return {f"Best-of-{ABLATION}": rows}

    return comparisons


def random_is_worse(evidence):
    rows = []
    for benchmark in ("Test", "Hard"):
        vote = evidence.vote(benchmark, ABLATION)
        head = evidence.method("random-head", benchmark, "best_of_n", ABLATION)
        rows.append(compare(f"{benchmark}: vote over random head", "greater", vote, head))
    return {f"At N = {ABLATION}": rows}


def beams_match(evidence):
    pairs = {
        benchmark: (
            evidence.method(PAPER, benchmark, "best_of_n", BUDGET),
            evidence.beams(PAPER, benchmark),
        )
        for benchmark in evidence.setting.benchmarks
    }
    close = [
        compare(f"{b}: best-of-{BUDGET} and beam search", "close", *pairs[b])
        for b in ("Test", "MultiArith")
    ]
    trails = compare(f"Hard: best-of-{BUDGET} over beam search", "greater", *pairs["Hard"])
    return {f"Beam search {BEAMS[0]} x {BEAMS[1]} and best-of-{BUDGET}": [*close, trails]}


def samples_are_the_same(evidence):
    rows = [
        compare(
            f"{SWEPT}, {sampler}: batches of 7, N = 16, one process; against batches of "
            f"{evidence.setting.batch_size}, N = 64",
            "same", evidence.same_batches(sampler), 1.0,
        )
        for sampler in evidence.setting.chosen
    ]  # fmt: skip
    grown = compare(f"{SWEPT}: pool grown while scored", "same", evidence.same_pools(), 1.0)
    return {"Questions whose answers are all the same": [*rows, grown]}


def bayesian_vote_wins(evidence):
    rows = [
        compare(
            f"{benchmark}: Bayesian vote of {LARGEST} over the majority vote",
            "greater",
            evidence.method(SHIPPED, benchmark, "bayesian_vote", LARGEST),
            evidence.vote(benchmark, LARGEST),
        )
        for benchmark in evidence.setting.benchmarks
    ]
    return {"Against the majority vote": rows}


def shipped_model_wins(evidence):
    over_vote, over_greedy = [], []
    for benchmark in evidence.setting.benchmarks:
        vote, greedy = evidence.vote(benchmark, LARGEST), evidence.greedy(benchmark)
        for name in ("best_of_n", "weighted_vote"):
            answers = evidence.method(SHIPPED, benchmark, name, LARGEST)
            label = f"{benchmark}: {name} of {LARGEST}"
            over_vote.append(compare(f"{label} over the vote", "greater", answers, vote))
            over_greedy.append(compare(f"{label} over greedy", "greater", answers, greedy))
    return {"Against the majority vote": over_vote, "Against one greedy trajectory": over_greedy}


def shipped_model_solves(evidence):
    rows = []
    for benchmark in evidence.setting.benchmarks:
        found = evidence.alone(benchmark)
        if found is not None:
            label = f"{benchmark}: its own answer over the trajectory's"
            rows.append(compare(label, "greater", *found))
    return {"From the thoughts of the first trajectory": rows}


def thoughts_tell_little(evidence):
    rows = [
        compare(f"{benchmark}: 0.60 over its AUC", "greater", 0.6, evidence.auc(PAPER, benchmark))
        for benchmark in evidence.setting.benchmarks
    ]
    return {"Pairwise AUC of right and wrong trajectories of one question, x 100": rows}


PAPER_CLAIMS = (
    Claim(
        "1",
        "Coverage grows monotonically with N for both samplers, with diminishing returns.",
        "no figures in the text",
        coverage_grows,
        ("pools",),
        ("coverage",),
        "pass@N can't fall as N grows; what is tested is that it still rises from 16 to 64.",
    ),
    Claim(
        "2",
        "MC dropout reaches a higher coverage than additive Gaussian noise at nearly all N.",
        "no figures in the text",
        dropout_covers_more,
        ("pools",),
        ("coverage",),
    ),
    Claim(
        "3",
        "Both samplers peak at a moderate diversity; at a high diversity noise keeps its coverage "
        "while that of dropout falls.",
        "no figures in the text",
        moderate_is_best,
        ("pools", "maps"),
        ("diversity", "map"),
        "Moderate is the strength chosen on validation data; weakest and strongest are a quarter "
        "and three times of it.",
    ),
    Claim(
        "4",
        "Best-of-N and beam search with LatentRM beat the majority vote.",
        "COCONUT, N = 32: GSM8K Test vote 33.6, best-of-N 35.4, beam search about 35; GSM8K Hard "
        "6.1, 7.8, about 7",
        paper_model_beats_vote,
        (*TRAINED, "beams"),
        ("cost", "latent_rm"),
    ),
    Claim(
        "5",
        "The contrastive loss beats BCE.",
        "best-of-8: GSM8K Test 35.4 against 33.5, Hard 7.8 against 7.4",
        _ablation("bce-rollout", "contrastive over BCE"),
        TRAINED,
    ),
    Claim(
        "6",
        "Labels by rollouts beat labels by the outcome.",
        "best-of-8: GSM8K Test 35.4 against 30.7, Hard 7.8 against 6.0",
        _ablation("contrastive-outcome", "rollout labels over outcome labels"),
        TRAINED,
    ),
    Claim(
        "7",
        "A random head is worse than the majority vote.",
        "GSM8K Test 28.9 against 33.6",
        random_is_worse,
        TRAINED,
    ),
    Claim(
        "8",
        "Beam search matches best-of-N on Test and MultiArith and trails it on Hard.",
        "no further figures in the text",
        beams_match,
        (*TRAINED, "beams"),
    ),
)
OWN_CLAIMS = (
    Claim(
        "A",
        "A sample is the same whatever the batch, the number of samples and of processes.",
        "",
        samples_are_the_same,
        ("pools", "other_batches", "chosen"),
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
        "The shipped reward model wins because it solves the problems better than the generator.",
        "",
        shipped_model_solves,
        ("pools",),
        (),
        "The reward model reads the thoughts of one trajectory and answers by itself, without any "
        "choice.",
    ),
    Claim(
        "E",
        "The paper's LatentRM does not beat the vote here because thoughts alone hardly tell right "
        "trajectories from wrong ones.",
        "",
        thoughts_tell_little,
        TRAINED,
        ("latent_rm",),
        "An AUC of 0.5 is chance. Only questions with right and wrong trajectories count.",
    ),
)
CLAIMS = PAPER_CLAIMS + OWN_CLAIMS
