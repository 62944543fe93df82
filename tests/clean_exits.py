"""Runs each command thirty times on two processes: python -m tests.clean_exits [COMMAND ..]

Prints a line for each command (default: all), and exits with 1 if a run did not exit with 0. It
takes about thirty minutes, so it is not part of the tests.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import yaml

from tests.commands import assert_success, command, launch

EXITS = 30
DATA = ("--data_path", "data/tiny_valid.json", "--limit", 8, "--sampling_by", "noise")


def commands(folder):
    """{name: the command line that writes into ``folder / "out"``}."""
    out = folder / "out"
    annotate = ("annotate_data", *DATA, "--n_samples", 4, "--n_samples_per_step", 0)
    assert_success(launch(command(*annotate, "--save_path", folder, "--name", "pool")))
    write_recipes(folder)
    few = ("--n_samples", 4, "--output_dir", out)
    beams = ("--prm_mode", "beam_search", "--num_beams", 2, "--num_beam_candidates", 2)
    cells = folder / "cells.txt"
    cells.write_text(" ".join(map(str, ("src.infer_gpt2", *DATA, *few))))
    lines = {
        "infer_gpt2": ("infer_gpt2", *DATA, *few),
        "infer_llama": ("infer_llama", *DATA, *few),
        "infer_gpt2_rm": ("infer_gpt2_rm", *DATA, "--num_return_sequences", 4, "--output_dir", out),
        "infer_llama_rm": ("infer_llama_rm", *DATA, *beams, "--output_dir", out),
        "annotate_data": (*annotate, "--save_path", folder, "--name", "out"),
        "train": ("train", folder / "rm.yaml"),
        "train_backbone": ("train_backbone", folder / "backbone.yaml"),
        "sweep": ("sweep", cells),
    }
    return {name: command(*line, processes=2) for name, line in lines.items()}


def write_recipes(folder):
    """Small recipes of a reward model and a backbone."""
    pool, out = str(folder / "pool"), str(folder / "out")
    reward = {
        "output_dir": out,
        "model_id": "checkpoints/tiny-coconut",
        "train_pools": [pool],
        "eval_pools": {"test_n_4": pool},
        "labels": "outcome",
        "keep_unmixed": True,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
    }
    backbone = {
        "output_dir": out,
        "config": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
        "train": "tiny",
        "problems_per_epoch": 200,
        "valid": "data/tiny_valid.json",
        "seed": 1,
        "batch_size": 8,
        "weight_decay": 0.0,
        "stages": [{"epochs": 1, "learning_rate": 1e-3}],
    }
    (folder / "rm.yaml").write_text(yaml.safe_dump(reward))
    (folder / "backbone.yaml").write_text(yaml.safe_dump(backbone))


def main():
    folder, failed = Path(tempfile.mkdtemp()), 0
    for name, line in commands(folder).items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        clean = 0
        for _ in range(EXITS):
            result = launch(line)
            clean += result.returncode == 0
            if result.returncode:
                print(result.stderr, file=sys.stderr)
            shutil.rmtree(folder / "out")
        print(f"{name}: {clean} of {EXITS} exits clean", flush=True)
        failed += clean < EXITS
    shutil.rmtree(folder)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
