"""How large the measured workloads are on each device."""

from dataclasses import dataclass

from src.models.precision import computes_bf16_fast


@dataclass(frozen=True)
class Sizes:
    """The workloads of one model shape and number format; what is None is not measured.

    Prompts of ``prompt`` tokens, ``thoughts`` thoughts, ``answer`` answer tokens.
    against_products: (questions, samples, answer tokens) of the comparison with the products.
    questions: Q of the comparison of ``n_samples``. plain_at: the N that are measured the plain way
    too. batches, batch_samples: numbers of questions, and their N. compiled: (questions, samples)
    of the comparison of compiled with eager steps. beams: (questions, beams, proposals).
    annotation: (questions, trajectories, rollouts). scoring, training: (questions, trajectories).
    """

    shape: str
    dtype: str = "float32"
    prompt: int = 94
    thoughts: int = 6
    answer: int = 8
    against_products: tuple | None = None
    questions: int = 1
    n_samples: tuple = ()
    plain_at: tuple = ()
    batches: tuple = ()
    batch_samples: int = 16
    compiled: tuple | None = None
    beams: tuple | None = None
    annotation: tuple | None = None
    scoring: tuple | None = None
    training: tuple | None = None


CPU = (
    Sizes(
        "gpt2-small",
        against_products=(2, 64, 24),
        n_samples=(16, 64, 256),
        plain_at=(64,),
        batches=(1, 2, 4, 8),
        beams=(1, 2, 2),
        annotation=(1, 2, 8),
        scoring=(1, 16),
        training=(1, 8),
    ),
    Sizes("gpt2-small", "bfloat16", n_samples=(64,)),
)
_GPU = {
    "questions": 8,
    "n_samples": (16, 64, 256),
    "plain_at": (16, 64, 256),
    "batches": (1, 4, 16, 64),
    "batch_samples": 64,
    "beams": (1, 8, 8),
    "annotation": (1, 8, 64),
    "scoring": (8, 64),
}
CUDA = (
    Sizes("gpt2-small", against_products=(2, 64, 24), training=(32, 8), **_GPU),
    Sizes("gpt2-small", "bfloat16", compiled=(8, 64), training=(32, 8), **_GPU),
    # At N = 256 the plain way with all logits would hold 50 GB of logits.
    Sizes("llama-3.2-1b", "bfloat16", training=(8, 8), **_GPU | {"plain_at": (16, 64)}),
    Sizes("llama-3.2-1b", questions=8, n_samples=(64,)),
)
TINY = (
    Sizes(
        "tiny-gpt2",
        prompt=7,
        thoughts=3,
        answer=3,
        against_products=(1, 2, 3),
        n_samples=(2, 4),
        plain_at=(2,),
        batches=(1, 2),
        batch_samples=2,
        beams=(1, 2, 2),
        annotation=(1, 2, 2),
        scoring=(1, 3),
        training=(1, 3),
    ),
)  # for the tests
SIZES = {"cpu": CPU, "cuda": CUDA, "tiny": TINY}


def sizes_of(name):
    """The Sizes of a key of SIZES that this machine computes fast."""
    fast = computes_bf16_fast()
    return [sizes for sizes in SIZES[name] if fast or sizes.dtype != "bfloat16"]
