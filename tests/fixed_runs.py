"""Runs of every backbone and sampler whose results are stored in tests/fixed_runs.

``python -m tests.fixed_runs`` stores them anew. It was last run at commit 1ef1ee8, before the code
was reorganized. tests/test_fixed_runs.py checks that the results are still the same.
"""

import json
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.commands import ROOT, assert_success, command, run_here, samples_of

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
# The strengths of the bundled checkpoints when the results were stored.
DROPOUT_P = {"coconut": 0.1, "codi": 0.1, "colar": 0.03}
NOISE_STD = {"coconut": 0.8, "codi": 0.6, "colar": 0.05}
STORED_KEYS = ("texts", "vote", "candidates", "log_probs", "scores", "answer_scores")


def run_case(backbone, case, folder):
    """Runs one case into a folder. Returns what it wrote: (records, tensors)."""
    kind, *flags = CASES[case]
    if "dropout" in case:
        flags += ["--dropout_p", DROPOUT_P[backbone]]
    elif case != "greedy":
        flags += ["--noise_std", NOISE_STD[backbone]]
    if kind == "annotate":
        return [], _annotate(backbone, flags, folder)
    module = "infer_llama" if backbone == "colar" else "infer_gpt2"
    module, name = (f"{module}_rm", "generator") if kind == "infer_rm" else (module, "model")
    model = (f"--{name}_type", backbone, f"--{name}_id", f"checkpoints/tiny-{backbone}")
    line = command(module, *model, "--batch_size", 2, *flags, "--output_dir", folder)
    assert_success(run_here(line))
    records = [{k: r[k] for k in STORED_KEYS if k in r} for r in samples_of(folder)]
    tensors = {}
    for path in sorted(folder.glob("latents/*.safetensors")):
        tensors |= {f"{int(path.stem)}.{key}": value for key, value in load_file(path).items()}
    return records, tensors


def _annotate(backbone, flags, folder):
    model = ("--model_type", backbone, "--model_id", f"checkpoints/tiny-{backbone}")
    output = ("--save_path", folder.parent, "--name", folder.name)
    assert_success(run_here(command("annotate_data", *model, "--batch_size", 4, *flags, *output)))
    return load_file(folder / "shard_00000.safetensors")


def main():
    for backbone in BACKBONES:
        records, tensors = {}, {}
        for case in CASES:
            with tempfile.TemporaryDirectory() as folder:
                records[case], of_case = run_case(backbone, case, Path(folder) / "run")
            tensors |= {f"{case}/{key}": value for key, value in of_case.items()}
        STORED.mkdir(exist_ok=True)
        save_file(tensors, STORED / f"{backbone}.safetensors")
        text = json.dumps(records, indent=1, ensure_ascii=False)
        (STORED / f"{backbone}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
