"""Kills commands at random moments and compares their results: python -m tests.kill_commands

Runs annotate_data, train and infer_gpt2_rm (both modes) once whole, and once with up to ten
SIGKILLs after random times. Prints a line for each and exits with 1 if results differ. It takes
about ten minutes, so it is not part of the tests, which interrupt the same commands at each write.
"""

import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from tests.commands import ENVIRONMENT, ROOT, command, launch, outputs

KILLS = 10
SAMPLER = ("--sampling_by", "noise", "--noise_std", 0.8, "--data_path", "data/tiny_valid.json")


def annotate(folder):
    flags = ("--limit", 200, "--n_samples_per_step", 4, "--shard_size", 8, "--batch_size", 3)
    output = ("--save_path", folder.parent, "--name", folder.name)
    return command("annotate_data", *SAMPLER, *flags, *output)


def train(folder, pool):
    path = folder.with_suffix(".yaml")
    values = {
        "output_dir": str(folder),
        "model_id": "checkpoints/tiny-coconut",
        "train_pools": [str(pool)],
        "eval_pools": {"test_n_8": str(pool)},
        "seed": 0,
        "learning_rate": 1.0e-3,
        "max_steps": 120,
        "per_device_train_batch_size": 8,
        "eval_strategy": "steps",
        "eval_steps": 10,
        "save_strategy": "steps",
        "save_steps": 10,
        "load_best_model_at_end": True,
        "metric_for_best_model": "test_n_8_recall_at_1",
    }
    path.write_text(yaml.safe_dump(values))
    return command("train", path)


def infer(folder, prm, *mode):
    flags = ("--prm_id", prm, "--limit", 250, "--batch_size", 4, "--output_dir", folder)
    return command("infer_gpt2_rm", *SAMPLER, *flags, *mode)


def start(line):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(line, cwd=ROOT, env=ENVIRONMENT, **quiet)


def time_whole(line, folder):
    """Runs the command; seconds until its folder exists, and from then to its end."""
    begun, process = time.monotonic(), start(line)
    while not folder.exists() and process.poll() is None:
        time.sleep(0.05)
    opened = time.monotonic()
    if process.wait():
        sys.exit(launch(line).stderr)
    return opened - begun, time.monotonic() - opened


def kill_at_random(line, opening, working, rng):
    """Kills the command KILLS times, unless it ends before, and then runs it to its end.

    opening, working: seconds as ``time_whole`` returns them. Returns how often it was killed.
    """
    kills = 0
    for _ in range(KILLS):
        process = start(line)
        try:
            process.wait(timeout=opening + rng.uniform(0, working / 20))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    result = launch(line)
    if result.returncode:
        sys.exit(result.stderr)
    return kills


def contents(folder):
    """What a command has written, without times."""
    if (folder / "samples.jsonl").exists():
        return outputs(folder)
    names = ("shard_*", "manifest.json", "model.safetensors")
    return {path.name: path.read_bytes() for name in names for path in folder.glob(name)}


def compare(name, folder, line_for, rng):
    """Whether a killed command gives the results of a whole one; prints it.

    line_for: the command line that writes into a given folder.
    """
    label = name.replace(" ", "-")
    whole, killed = folder / f"{label}-whole", folder / f"{label}-killed"
    kills = kill_at_random(line_for(killed), *time_whole(line_for(whole), whole), rng)
    same = contents(whole) == contents(killed)
    print(f"{name}: killed {kills} times, results {'equal' if same else 'DIFFER'}", flush=True)
    return same


def main():
    rng, folder = random.Random(0), Path(tempfile.mkdtemp())
    pool, model = folder / "annotate_data-whole", folder / "train-whole"
    beams = ("--prm_mode", "beam_search", "--num_beams", 4, "--num_beam_candidates", 4)
    best = ("--num_return_sequences", 64)
    commands = {
        "annotate_data": annotate,
        "train": lambda out: train(out, pool),
        "infer_gpt2_rm best_of_n": lambda out: infer(out, model, *best),
        "infer_gpt2_rm beam_search": lambda out: infer(out, model, *beams),
    }
    same = [compare(name, folder, line_for, rng) for name, line_for in commands.items()]
    shutil.rmtree(folder)
    sys.exit(not all(same))


if __name__ == "__main__":
    main()
