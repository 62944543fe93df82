"""How well a reward model answers by itself: python -m benchmarks.reward_model_alone POOL ..

A pool is the folder of a run of src.infer_gpt2 with --save_latents true. A reward model that scores
answers reads the thoughts of each question's first trajectory and answers greedily, without a
choice among trajectories. Its accuracy, beside the generator's, tells how much of a gain comes from
choosing and how much from a model that solves the problems better than the generator.
"""

import argparse
import json
from pathlib import Path

from src.claims.alone import answers_alone
from utils.metrics import measured


def main():
    parser = argparse.ArgumentParser(prog="benchmarks.reward_model_alone", description=__doc__)
    parser.add_argument("--prm_id", default="checkpoints/tiny-latentRM-coconut")
    parser.add_argument("pools", nargs="+", type=Path)
    args = parser.parse_args()
    for name, right in answers_alone(args.prm_id, {str(pool): pool for pool in args.pools}).items():
        measures = {who: measured(values) for who, values in right.items()}
        print(json.dumps({"pool": name} | measures))


if __name__ == "__main__":
    main()
