"""Which share of the predictions another number format changes, against float32."""

from benchmarks.models import build_backbone, random_prompts
from src.models.loading import bundled_backbone, load_backbone
from src.sampling.engine import sample
from src.sampling.samplers import Sampling
from src.sampling.trajectories import Request
from utils.datasets import load_dataset

BUNDLED, QUESTIONS, SAMPLES = "coconut", 100, 16


def changed(shapes, dtype, device):
    """[{"model", "dtype", "what", "share"}], shares of predictions that differ from float32.

    shapes: keys of SHAPES; random weights answer with nearly equal logits, so that more tokens
    change than a trained model's.
    """
    shares = {(shape, "answer tokens"): _changed_tokens(shape, dtype, device) for shape in shapes}
    for kind, share in _changed_numbers(dtype, device).items():
        shares[f"tiny-{BUNDLED}", f"numbers, {kind}"] = share
    return [
        {"model": model, "dtype": dtype, "what": what, "share": share}
        for (model, what), share in shares.items()
    ]


def _changed_tokens(shape, dtype, device):
    """The share of answer tokens that differ; every answer has the same length."""
    answers = []
    for name in ("float32", dtype):
        model = build_backbone(shape, name, device)
        ids = random_prompts(model.config, 8, 32).tolist()
        request = Request(ids, list(range(8)), 4, 6, 8, 0, Sampling("noise", noise_std=0.6))
        answers.append(
            [token for of in sample(model, request).tokens for ids in of for token in ids]
        )
        del model  # before the next one is built
    return _share(*answers)


def _share(predictions, others):
    pairs = zip(predictions, others, strict=True)
    return sum(a != b for a, b in pairs) / len(predictions)


def _changed_numbers(dtype, device):
    """Shares of predicted numbers that differ, of the bundled COCONUT on tiny_valid.

    {"greedy": one trajectory a question, "noise": 16 samples a question}.
    """
    rows = load_dataset("data/tiny_valid.json")[:QUESTIONS]
    float32, other = (_predictions(rows, name, device) for name in ("float32", dtype))
    return {kind: _share(float32[kind], other[kind]) for kind in float32}


def _predictions(rows, dtype, device):
    """The predicted numbers, None where there is none, by kind of sampling."""
    model, tokenizer = load_backbone(BUNDLED, str(bundled_backbone(BUNDLED)), dtype, device)
    prompts = model.encode(tokenizer, [row["question"] for row in rows])
    defaults, questions = model.defaults, list(range(len(rows)))
    kinds = {
        "greedy": (1, Sampling()),
        "noise": (SAMPLES, Sampling("noise", noise_std=defaults.noise_std)),
    }
    lengths = (defaults.latent_length, defaults.max_new_tokens)
    return {
        kind: [
            model.parse_answer(text)
            for answers in sample(
                model, Request(prompts, questions, n_samples, *lengths, 0, sampling)
            ).tokens
            for text in tokenizer.batch_decode(answers)
        ]
        for kind, (n_samples, sampling) in kinds.items()
    }
