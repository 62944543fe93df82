"""Runs of every backbone and sampler whose results are stored in tests/fixed_runs.

``python -m tests.fixed_runs`` stores them anew. It was last run at commit 1ef1ee8, before the code was
reorganized: that the results are still the same is what tests/test_fixed_runs.py checks.
"""

import json
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.commands import ROOT, command, run_here

STORED = ROOT / "tests" / "fixed_runs"
BACKBONES = ("coconut", "codi", "colar")
SAMPLE = ("--limit", 3, "--n_samples", 4, "--report_n", 1, 4, "--save_latents", "true")
CHOOSE = ("--limit", 3, "--sampling_by", "noise", "--report_n", 1, 4)
BEAMS = ("--limit", 3, "--prm_mode", "beam_search", "--num_beams", 2, "--num_beam_candidates", 2)
LABEL = ("--limit", 6, "--n_samples", 3, "--n_samples_per_step", 4)
SHARED_PROMPT = ("--dropout_prompt", "false", "--dropout_answer", "true")
# name: command, flags
CASES = {
    "greedy": ("infer", "--limit", 3, "--do_sample", "false", "--save_latents", "true"),
    "noise": ("infer", *SAMPLE, "--sampling_by", "noise", "--bayesian_vote", "true"),
    "dropout": ("infer", *SAMPLE, "--sampling_by", "dropout", "--bayesian_vote", "true"),
    "dropout_shared_prompt": ("infer", *SAMPLE, "--sampling_by", "dropout", *SHARED_PROMPT),
    "dropout_one_mask": ("infer", *SAMPLE, "--dropout_mask", "trajectory"),
    "best_of_n": ("infer_rm", *CHOOSE, "--num_return_sequences", 4),
    "beam_search_noise": ("infer_rm", *BEAMS, "--sampling_by", "noise"),
    "beam_search_dropout": ("infer_rm", *BEAMS, "--sampling_by", "dropout"),
    "annotate_noise": ("annotate", *LABEL, "--sampling_by", "noise"),
    "annotate_dropout": ("annotate", *LABEL, "--sampling_by", "dropout"),
}
KEPT = ("texts", "vote", "candidates", "log_probs", "scores", "answer_scores")


def run_case(backbone, case, folder):
    """Runs one case into a folder. Returns what it wrote: (records, tensors)."""
    kind, *flags = CASES[case]
    if kind == "annotate":
        return [], _annotate(backbone, flags, folder)
    module = "infer_llama" if backbone == "colar" else "infer_gpt2"
    module, name = (f"{module}_rm", "generator") if kind == "infer_rm" else (module, "model")
    model = (f"--{name}_type", backbone, f"--{name}_id", f"checkpoints/tiny-{backbone}")
    _run(command(module, *model, "--batch_size", 2, *flags, "--output_dir", folder))
    lines = (folder / "samples.jsonl").read_text().splitlines()
    records = [{k: r[k] for k in KEPT if k in r} for r in map(json.loads, lines)]
    tensors = {}
    for path in sorted(folder.glob("latents/*.safetensors")):
        tensors |= {f"{int(path.stem)}.{key}": value for key, value in load_file(path).items()}
    return records, tensors


def _annotate(backbone, flags, folder):
    model = ("--model_type", backbone, "--model_id", f"checkpoints/tiny-{backbone}")
    where = ("--save_path", folder.parent, "--name", folder.name)
    _run(command("annotate_data", *model, "--batch_size", 4, *flags, *where))
    return load_file(folder / "shard_00000.safetensors")


def _run(line):
    done = run_here(line)
    assert done.returncode == 0, done.stderr


def main():
    for backbone in BACKBONES:
        records, tensors = {}, {}
        for case in CASES:
            with tempfile.TemporaryDirectory() as folder:
                records[case], found = run_case(backbone, case, Path(folder) / "run")
            tensors |= {f"{case}/{key}": value for key, value in found.items()}
        STORED.mkdir(exist_ok=True)
        save_file(tensors, STORED / f"{backbone}.safetensors")
        text = json.dumps(records, indent=1, ensure_ascii=False)
        (STORED / f"{backbone}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
