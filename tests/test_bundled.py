"""The bundled models are as good as the README says."""

import pytest
import yaml

from src.models.loading import load_backbone
from src.sampling.engine import sample
from src.sampling.samplers import Sampling
from src.sampling.trajectories import Request
from tests.commands import ROOT
from utils.datasets import load_dataset
from utils.metrics import summarize

GREEDY = {"coconut": 60, "codi": 55, "colar": 55}  # greedy accuracy at least, in percent
MARGIN = {"coconut": 15, "codi": 12, "colar": 12}  # coverage at 64 above greedy, points at least


@pytest.fixture(scope="module", params=GREEDY)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def bundled(name):
    return load_backbone(name, str(ROOT / f"checkpoints/tiny-{name}"))


def default_sampling(bundled, sampler):
    """The checkpoint's sampler parameters (generation_config.json), chosen on tiny_valid."""
    # dropout_embedding is for annotation only.
    return Sampling(sampler, **bundled[0].defaults.sampling() | {"dropout_embedding": False})


def measure(bundled, split, limit, report_n, sampling):
    """{N: measures} on the first ``limit`` questions of a split."""
    model, tokenizer = bundled
    rows = load_dataset(ROOT / f"data/{split}.json")[:limit]
    prompts = model.encode(tokenizer, [row["question"] for row in rows])
    pools = []
    for start in range(0, len(rows), 50):
        part = slice(start, start + 50)
        request = Request(
            prompts=prompts[part],
            question_ids=range(len(rows))[part],
            n_samples=max(report_n),
            latent_length=model.defaults.latent_length,
            max_new_tokens=12,
            seed=42,
            sampling=sampling,
        )
        tokens = sample(model, request).tokens
        for row, answers in zip(rows[part], tokens, strict=True):
            texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
            pools.append(([model.parse_answer(text) for text in texts], row["answer"]))
    return summarize(pools, report_n)


def test_greedy_solves_the_benchmark(bundled, name):
    by_n = measure(bundled, "tiny_test", 200, [1], Sampling())["1"]
    assert by_n["mean_accuracy"]["value"] >= GREEDY[name]
    assert by_n["unparsable"]["value"] < 1


def coverage(bundled, split, limit, report_n, sampling):
    """Coverage in percent for each N of ``report_n``."""
    by_n = measure(bundled, split, limit, report_n, sampling)
    return [by_n[str(n)]["coverage"]["value"] for n in report_n]


# Fewer questions with dropout, whose samples each read the prompt.
@pytest.mark.parametrize(("sampler", "limit"), [("dropout", 20), ("noise", 32)])
def test_coverage_at_64_is_well_above_greedy(bundled, name, sampler, limit):
    sampling = default_sampling(bundled, sampler)
    (greedy,) = coverage(bundled, "tiny_test", limit, [1], Sampling())
    sampled = coverage(bundled, "tiny_test", limit, [1, 4, 16, 64], sampling)
    assert sampled == sorted(sampled) and sampled[0] < sampled[1] < sampled[2]
    assert sampled[-1] >= greedy + MARGIN[name]


@pytest.mark.parametrize(
    ("split", "sampler", "limit"), [("tiny_multi", "noise", 60), ("tiny_hard", "dropout", 40)]
)
def test_coverage_grows_with_n_on_the_other_benchmarks(bundled, split, sampler, limit):
    sampled = coverage(bundled, split, limit, [1, 4, 16], default_sampling(bundled, sampler))
    assert sampled == sorted(set(sampled))


@pytest.mark.quick
@pytest.mark.parametrize(
    "folder", sorted((ROOT / "checkpoints").glob("tiny-*")), ids=lambda path: path.name
)
def test_bundled_checkpoints_are_small_and_hold_their_recipe(folder):
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8 * 2**20
    kind, _, backbone = folder.name.removeprefix("tiny-").rpartition("-")
    names = {"": "backbone_tiny_", "latentRM": "train_tiny_", "judge": "train_tiny_"}
    recipe = names[kind] + backbone + ("_pool_judge" if kind == "judge" else "")
    current = yaml.safe_load((ROOT / f"training_args/{recipe}.yaml").read_text())
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == current
