"""Kills a command ten times at random moments and compares its results: python -m tests.kill_commands

Runs annotate_data, train and infer_gpt2_rm (both modes) once whole, and once under SIGKILL after
random times until they are done; prints a line each and exits with 1 where results differ. Takes
some ten minutes, so pytest leaves it out; its tests interrupt the same commands at every write.
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
    flags = (
        "--limit",
        200,
        "--n_samples_per_step",
        4,
        "--shard_size",
        8,
        "--save_path",
        folder.parent,
    )
    return command("annotate_data", *SAMPLER, *flags, "--name", folder.name)


def train(folder, pool):
    path = folder.with_suffix(".yaml")
    values = {
        "output_dir": str(folder), "model_id": "checkpoints/tiny-coconut", "train_pools": [str(pool)],
        "eval_pools": {"test_n_8": str(pool)}, "seed": 0, "learning_rate": 1.0e-3, "max_steps": 120,
        "per_device_train_batch_size": 8, "eval_strategy": "steps", "eval_steps": 10,
        "save_strategy": "steps", "save_steps": 10, "load_best_model_at_end": True,
        "metric_for_best_model": "test_n_8_recall_at_1",
    }  # fmt: skip
    path.write_text(yaml.safe_dump(values))
    return command("train", path)


def infer(folder, prm, *mode):
    flags = ("--prm_id", prm, "--limit", 250, "--batch_size", 4, "--output_dir", folder)
    return command("infer_gpt2_rm", *SAMPLER, *flags, *mode)


def start(line):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(line, cwd=ROOT, env=ENVIRONMENT, **quiet)


def time_whole(line, folder):
    """Runs the command; seconds until its folder stood there, and from then to its end."""
    begun, process = time.monotonic(), start(line)
    while not folder.exists() and process.poll() is None:
        time.sleep(0.05)
    opened = time.monotonic()
    if process.wait():
        sys.exit(launch(line).stderr)
    return opened - begun, time.monotonic() - opened


def kill_at_random(line, opening, working, chance):
    """Starts the command and kills it at a random moment of its work, KILLS times or until it was
    faster; then lets it end. Returns how often it was killed."""
    kills = 0
    for _ in range(KILLS):
        process = start(line)
        try:
            process.wait(timeout=opening + chance.uniform(0, working / 20))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    done = launch(line)
    if done.returncode:
        sys.exit(done.stderr)
    return kills


def contents(folder):
    """What a command has made: files without clocks in them."""
    if (folder / "samples.jsonl").exists():
        return outputs(folder)
    names = ("shard_*", "manifest.json", "model.safetensors")
    return {path.name: path.read_bytes() for name in names for path in folder.glob(name)}


def compare(name, whole, torn, whole_line, torn_line, chance):
    kills = kill_at_random(torn_line, *time_whole(whole_line, whole), chance)
    same = contents(whole) == contents(torn)
    print(f"{name}: killed {kills} times, results {'equal' if same else 'DIFFER'}", flush=True)
    return same


def main():
    chance, folder = random.Random(0), Path(tempfile.mkdtemp())
    pool, model = folder / "annotate-whole", folder / "train-whole"
    beams = ("--prm_mode", "beam_search", "--num_beams", 4, "--num_beam_candidates", 4)
    best = ("--num_return_sequences", 64)
    same = [
        compare("annotate_data", pool, folder / "annotate-torn", annotate(pool),
                annotate(folder / "annotate-torn"), chance),
        compare("train", model, folder / "train-torn", train(model, pool),
                train(folder / "train-torn", pool), chance),
        *(
            compare(f"infer_gpt2_rm {name}", folder / f"{name}-whole", folder / f"{name}-torn",
                    infer(folder / f"{name}-whole", model, *mode),
                    infer(folder / f"{name}-torn", model, *mode), chance)
            for name, mode in (("best_of_n", best), ("beam_search", beams))
        ),
    ]  # fmt: skip
    shutil.rmtree(folder)
    sys.exit(not all(same))


if __name__ == "__main__":
    main()
