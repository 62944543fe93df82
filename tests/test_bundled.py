"""The bundled models do what the README says of them."""

import pytest
import yaml

from src.models.loading import load_backbone
from src.sampling.engine import sample
from src.sampling.samplers import Sampling
from src.sampling.trajectories import Request
from tests.commands import ROOT
from utils.datasets import load_dataset
from utils.metrics import summarize

GREEDY = {"coconut": 60, "codi": 55, "colar": 55}  # percent at least
QUESTIONS = {"coconut": 100, "codi": 80, "colar": 80}  # of tiny_test on which that is tried
MARGIN = {"coconut": 15, "codi": 12, "colar": 12}  # points of coverage at 64 above greedy, at least


@pytest.fixture(scope="module", params=GREEDY)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def bundled(name):
    return load_backbone(name, str(ROOT / f"checkpoints/tiny-{name}"))


def sampling_of(bundled, by):
    """The strengths that the checkpoint's generation_config.json holds, chosen on tiny_valid."""
    settings = bundled[0].defaults.sampling() | {"dropout_embedding": False}  # that is annotation's
    return Sampling(by, **settings)


def measure(bundled, split, limit, report_n, sampling):
    model, tokenizer = bundled
    rows = load_dataset(ROOT / f"data/{split}.json")[:limit]
    prompts = model.encode(tokenizer, [row["question"] for row in rows])
    pools = []
    for start in range(0, len(rows), 50):
        part = slice(start, start + 50)
        questions = range(len(rows))[part]
        found = sample(
            model,
            Request(
                prompts[part],
                questions,
                max(report_n),
                model.defaults.latent_length,
                12,
                42,
                sampling,
            ),
        )
        for row, answers in zip(rows[part], found.tokens, strict=True):
            texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
            pools.append(([model.parse_answer(text) for text in texts], float(row["answer"])))
    return summarize(pools, report_n)


def test_greedy_solves_the_benchmark(bundled, name):
    found = measure(bundled, "tiny_test", 1000, [1], Sampling())["1"]
    assert found["mean_accuracy"]["value"] >= GREEDY[name]
    assert found["unparsable"]["value"] < 1


@pytest.mark.parametrize("by", ["dropout", "noise"])
def test_coverage_at_64_is_well_above_greedy(bundled, name, by):
    greedy = measure(bundled, "tiny_test", QUESTIONS[name], [1], Sampling())["1"]["coverage"][
        "value"
    ]
    found = measure(bundled, "tiny_test", QUESTIONS[name], [1, 4, 16, 64], sampling_of(bundled, by))
    coverage = [found[n]["coverage"]["value"] for n in ("1", "4", "16", "64")]
    assert coverage == sorted(set(coverage))
    assert coverage[-1] >= greedy + MARGIN[name]


@pytest.mark.parametrize("split", ["tiny_multi", "tiny_hard"])
@pytest.mark.parametrize("by", ["dropout", "noise"])
def test_coverage_grows_on_the_companions(bundled, name, split, by):
    found = measure(bundled, split, 80, [1, 4, 16], sampling_of(bundled, by))
    coverage = [found[n]["coverage"]["value"] for n in ("1", "4", "16")]
    assert coverage == sorted(set(coverage))


@pytest.mark.parametrize(
    "folder", sorted((ROOT / "checkpoints").glob("tiny-*")), ids=lambda path: path.name
)
def test_checkpoints_are_small_and_have_their_recipe(folder):
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8 * 2**20
    kind = folder.name.removeprefix("tiny-")
    recipe = (
        f"train_tiny_{kind.removeprefix('latentRM-')}"
        if "latentRM" in kind
        else f"backbone_tiny_{kind}"
    )
    current = yaml.safe_load((ROOT / f"training_args/{recipe}.yaml").read_text())
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == current
