"""The embedded model does what the README says of it."""

import pytest

from src.models.loading import load_backbone
from src.sampling.engine import Request, sample
from src.sampling.samplers import Sampling
from tests.commands import ROOT
from utils.data import load_dataset
from utils.metrics import summarize

# chosen on tiny_valid, see docs/results.md
STRENGTHS = [Sampling("dropout", dropout_p=0.1), Sampling("noise", noise_std=0.8)]


@pytest.fixture(scope="module")
def embedded():
    return load_backbone("coconut", str(ROOT / "checkpoints/tiny-coconut"))


def measure(embedded, split, limit, report_n, sampling):
    model, tokenizer = embedded
    rows = load_dataset(ROOT / f"data/{split}.json")[:limit]
    prompts = tokenizer([model.format_prompt(row["question"]) for row in rows])["input_ids"]
    pools = []
    for start in range(0, len(rows), 50):
        part = slice(start, start + 50)
        questions = range(len(rows))[part]
        found = sample(model, Request(prompts[part], questions, max(report_n), 6, 12, 42, sampling))
        for row, answers in zip(rows[part], found.tokens, strict=True):
            texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
            pools.append(([model.parse_answer(text) for text in texts], float(row["answer"])))
    return summarize(pools, report_n)


def test_greedy_solves_the_benchmark(embedded):
    found = measure(embedded, "tiny_test", 1000, [1], Sampling())["1"]
    assert found["mean_accuracy"]["value"] >= 60
    assert found["unparsable"]["value"] < 1


@pytest.mark.parametrize("sampling", STRENGTHS, ids=lambda sampling: sampling.by)
def test_coverage_at_64_is_15_points_above_greedy(embedded, sampling):
    greedy = measure(embedded, "tiny_test", 250, [1], Sampling())["1"]["coverage"]["value"]
    found = measure(embedded, "tiny_test", 250, [1, 4, 16, 64], sampling)
    coverage = [found[n]["coverage"]["value"] for n in ("1", "4", "16", "64")]
    assert coverage == sorted(set(coverage))
    assert coverage[-1] >= greedy + 15


@pytest.mark.parametrize("split", ["tiny_multi", "tiny_hard"])
@pytest.mark.parametrize("sampling", STRENGTHS, ids=lambda sampling: sampling.by)
def test_coverage_grows_on_the_companions(embedded, split, sampling):
    found = measure(embedded, split, 80, [1, 4, 16], sampling)
    coverage = [found[n]["coverage"]["value"] for n in ("1", "4", "16")]
    assert coverage == sorted(set(coverage))


def test_checkpoint_is_small():
    files = (ROOT / "checkpoints/tiny-coconut").iterdir()
    assert sum(path.stat().st_size for path in files) <= 8 * 2**20
