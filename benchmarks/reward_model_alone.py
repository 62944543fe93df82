"""What a reward model that scores answers would answer by itself, for pools of src.infer_gpt2
--save_latents true: python -m benchmarks.reward_model_alone POOL..

For each question it reads the thoughts of the first trajectory and answers greedily, with no choice
among trajectories: percent right. It tells how much of a gain comes from choosing, and how much from
a model that solves the problems better than the generator.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from src.models.loading import load_backbone, load_reward_model
from utils import records
from utils.metrics import measured


@torch.inference_mode()
def answers_right(model, latents, gold):
    """Whether greedy decoding after the first trajectory's thoughts yields the tokens ``gold`` (A,)."""
    ids = latents["input_ids"][None]  # (1, L)
    pool = (latents["latent_embeds"][None, :1], latents["latent_lengths"][None, :1])
    logits = model.read(ids, torch.ones_like(ids), *pool, gold[None, None])[1][0, 0]  # (A, V)
    return bool((logits.argmax(-1) == gold).all())


def main():
    parser = argparse.ArgumentParser(prog="benchmarks.reward_model_alone", description=__doc__)
    parser.add_argument("--prm_id", default="checkpoints/tiny-latentRM-coconut")
    parser.add_argument("pools", nargs="+", type=Path)
    args = parser.parse_args()
    for folder in args.pools:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["settings"]
        backbone, tokenizer = load_backbone(config["model_type"], config["model_id"])
        model, right, first = load_reward_model(args.prm_id, backbone, tokenizer), [], []
        for idx, record in sorted(records.read(folder).items()):
            text = backbone.format_answer(record["answer"]) + tokenizer.eos_token
            gold = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
            right.append(answers_right(model, load_file(records.latents_path(folder, idx)), gold))
            first.append(record["correct"][0])
        found = {"pool": str(folder), "reward_model": measured(right), "generator": measured(first)}
        print(json.dumps(found))


if __name__ == "__main__":
    main()
