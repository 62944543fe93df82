"""Peak memory of this process while it annotates: python -m benchmarks.annotation_memory

At GPT-2-small shape, 64 rollouts from every thought, under --memory_gib, on one CPU thread.
"""

from itertools import cycle

import torch

from benchmarks.bench import VARIANTS
from benchmarks.models import build_backbone, random_prompts
from benchmarks.timing import peak_mib, reset_peak
from src.sampling import memory
from src.sampling.rollouts import annotate
from src.sampling.trajectories import Request
from utils.cli import Parser
from utils.errors import reports_user_errors

LENGTHS, TRAJECTORIES, ROLLOUTS, ANSWER = (94, 91, 88, 85), 8, 64, 8
VARIANT_THOUGHTS = {"noise": 2, "dropout, own prompts": 1}


def peak(shape, variant, gib, n_rollouts=ROLLOUTS):
    """(MiB at the peak, MiB before) of annotating questions with prompts of LENGTHS."""
    model, thoughts = build_backbone(shape, "float32", "cpu"), VARIANT_THOUGHTS[variant]
    every = random_prompts(model.config, len(LENGTHS), max(LENGTHS)).tolist()
    prompts = [ids[:length] for ids, length in zip(every, LENGTHS, strict=True)]
    questions = list(range(len(prompts)))
    sampling = VARIANTS[variant]
    request = Request(prompts, questions, TRAJECTORIES, thoughts, ANSWER, 0, sampling)
    memory.set_budget([model], max(LENGTHS) + thoughts + ANSWER, gib)
    is_right = cycle([True, False, False])  # so that no question is skipped
    before = reset_peak("cpu")
    annotate(model, request, n_rollouts, lambda q, ids: next(is_right))
    return peak_mib("cpu"), before


@reports_user_errors
def main(argv=None):
    parser = Parser(prog="benchmarks.annotation_memory", description=__doc__)
    parser.add_argument("--memory_gib", type=float, default=4.0)
    parser.add_argument("--variant", choices=VARIANT_THOUGHTS, default="dropout, own prompts")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    highest, before = peak("gpt2-small", args.variant, args.memory_gib)
    held = f"{before:,.0f} MiB held before"
    print(f"peak {highest:,.0f} MiB of {args.memory_gib * 1024:,.0f} MiB ({held})")


if __name__ == "__main__":
    main()
