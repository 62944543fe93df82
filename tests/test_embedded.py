"""The embedded model does what the README says of it."""

import pytest

from src.models.loading import load_backbone
from src.sampling.engine import Request, sample
from src.sampling.samplers import Sampling
from tests.commands import ROOT
from utils.data import load_dataset
from utils.metrics import summarize


@pytest.fixture(scope="module")
def embedded():
    return load_backbone("coconut", str(ROOT / "checkpoints/tiny-coconut"))


def measure(embedded, split, limit, n_samples, sampling):
    model, tokenizer = embedded
    rows = load_dataset(ROOT / f"data/{split}.json")[:limit]
    prompts = tokenizer([model.format_prompt(row["question"]) for row in rows])["input_ids"]
    pools = []
    for start in range(0, len(rows), 50):
        part = slice(start, start + 50)
        questions = range(len(rows))[part]
        found = sample(model, Request(prompts[part], questions, n_samples, 6, 12, 1, sampling))
        for row, answers in zip(rows[part], found.tokens, strict=True):
            texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
            pools.append(([model.parse_answer(text) for text in texts], float(row["answer"])))
    return summarize(pools, sorted({1, n_samples}))


def test_greedy_solves_the_benchmark(embedded):
    found = measure(embedded, "tiny_test", 1000, 1, Sampling())["1"]
    assert found["mean_accuracy"]["value"] >= 60
    assert found["unparsable"]["value"] < 1


@pytest.mark.parametrize("split", ["tiny_test", "tiny_multi", "tiny_hard"])
@pytest.mark.parametrize("by", ["dropout", "noise"])
def test_samples_cover_more(embedded, split, by):
    found = measure(embedded, split, 60, 16, Sampling(by, dropout_p=0.1, noise_std=0.5))
    assert found["16"]["coverage"]["low"] > found["1"]["coverage"]["value"]


def test_checkpoint_is_small():
    files = (ROOT / "checkpoints/tiny-coconut").iterdir()
    assert sum(path.stat().st_size for path in files) <= 8 * 2**20
