"""Measures speed and memory beside the plain ways and the machine's limit.

python -m benchmarks.all --device cpu (one thread, about half an hour) or --device cuda (minutes).
Models have random weights of known shapes (benchmarks/models.py), so nothing is downloaded. Times
are medians of at least 5 runs, in alternation with what they are compared with. Writes one JSON
file, after every workload anew, and the figures, and prints tables. benchmarks.page puts them into
docs/performance.md.
"""

import json
import sys
import time
from pathlib import Path

import torch

from benchmarks import formats, reward, sampling
from benchmarks.bench import VARIANTS, Bench, NotMeasured, free
from benchmarks.figures import save_figures
from benchmarks.kernels import kernels_per_layer
from benchmarks.machine import about
from benchmarks.page import blocks
from benchmarks.sizes import sizes_of
from benchmarks.timing import REPEATS
from utils import device_memory
from utils.cli import Parser
from utils.errors import UserError, reports_user_errors
from utils.files import write_text

BF16 = "bfloat16"  # the number format that is compared with float32
WORKLOADS = {  # by the field of Sizes that gives their size
    "against_products": sampling.against_products,
    "n_samples": sampling.scaling_in_n,
    "batches": sampling.scaling_in_batch,
    "compiled": sampling.compiled,
    "beams": reward.beams,
    "annotation": reward.annotation,
    "scoring": reward.scoring,
    "training": reward.training,
}


def measure(sizes_name, device, repeats=REPEATS, progress=None, save=None):
    """All results, as they are written to the JSON file.

    sizes_name: a key of SIZES. progress: called with a line before each workload. save: called with
    the results so far after each workload.
    """
    started, progress = time.perf_counter(), progress or (lambda line: None)
    results = {"about": about(device), "limits": [], "rows": [], "kernels": [], "formats": []}
    results["skipped"] = []

    def say(line):
        progress(f"{time.perf_counter() - started:4.0f} s: {line}")

    def keep():
        results["about"]["seconds"] = round(time.perf_counter() - started)
        if save:
            save(results)

    for sizes in sizes_of(sizes_name):
        _measure_model(Bench.of(sizes, device, repeats), results, say, keep)
    shapes = list({sizes.shape: None for sizes in sizes_of(sizes_name) if sizes.dtype == BF16})
    if shapes:
        say("number formats")
        results["formats"] = formats.changed(shapes, BF16, device)
    keep()
    return results


def _measure_model(bench, results, say, keep):
    """Adds the results of one model. It is gone afterwards, before the next one is built."""
    results["limits"].append(bench.limits())
    for name, workload in WORKLOADS.items():
        if getattr(bench.sizes, name):
            label = f"{bench.sizes.shape}, {bench.sizes.dtype}, {name}"
            say(label)
            rows, why_not = _measured(workload, bench)
            results["rows"] += rows
            if why_not:
                free(bench.device)  # now that the workload's frames are gone
                say(f"{label}: not measured, {why_not}")
                about = {"shape": bench.sizes.shape, "dtype": bench.sizes.dtype}
                results["skipped"].append(about | {"workload": name, "why": why_not})
            keep()
    if bench.sizes.dtype == "float32":
        results["kernels"] += _kernels(bench)


def _measured(workload, bench):
    """(rows of a workload, None), or ([], why it could not be measured)."""
    try:
        return workload(bench), None
    except NotMeasured as error:
        return [], str(error)
    except Exception as error:
        if not device_memory.ran_out(error):
            raise
        return [], "out of memory"


def _kernels(bench):
    about = {"shape": bench.sizes.shape}
    return [
        about | {"variant": variant} | kernels_per_layer(bench.model, method)
        for variant, method in VARIANTS.items()
    ]


@reports_user_errors
def main(argv=None):
    parser = Parser(prog="benchmarks.all", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/benchmarks"))
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU; take --device cpu")
    torch.set_num_threads(args.threads)
    path = args.output_dir / f"{args.device}.json"

    def save(results):
        write_text(path, json.dumps(results, indent=1) + "\n")

    results = measure(args.device, args.device, progress=_say, save=save)
    save_figures(results, args.output_dir)
    print("\n\n".join(blocks(results).values()))
    print(f"written: {path}")


def _say(line):
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
