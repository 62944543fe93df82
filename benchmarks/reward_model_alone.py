"""How well a reward model answers by itself: python -m benchmarks.reward_model_alone POOL ..

A pool is the folder of a run of src.infer_gpt2 with --save_latents true. A reward model that scores
answers reads the thoughts of each question's first trajectory and answers greedily, without a
choice among trajectories. Its accuracy, beside the generator's, tells how much of a gain comes from
choosing and how much from a model that solves the problems better than the generator.
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
    """Whether the greedy answer after the first trajectory's thoughts is ``gold``, ids (A,)."""
    ids = latents["input_ids"][None]  # (1, L)
    thoughts = latents["latent_embeds"][None, :1]  # (1, 1, T, D)
    num_thoughts = latents["latent_lengths"][None, :1]  # (1, 1)
    _, logits = model.read(ids, torch.ones_like(ids), thoughts, num_thoughts, gold[None, None])
    return bool((logits[0, 0].argmax(-1) == gold).all())  # (A, V), (A,)


def main():
    parser = argparse.ArgumentParser(prog="benchmarks.reward_model_alone", description=__doc__)
    parser.add_argument("--prm_id", default="checkpoints/tiny-latentRM-coconut")
    parser.add_argument("pools", nargs="+", type=Path)
    args = parser.parse_args()
    for folder in args.pools:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["settings"]
        backbone, tokenizer = load_backbone(config["model_type"], config["model_id"])
        model = load_reward_model(args.prm_id, backbone, tokenizer)
        right, generator_right = [], []
        for idx, record in sorted(records.read(folder).items()):
            text = backbone.format_answer(record["answer"]) + tokenizer.eos_token
            gold = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
            right.append(answers_right(model, load_file(records.latents_path(folder, idx)), gold))
            generator_right.append(record["correct"][0])
        measures = {"reward_model": measured(right), "generator": measured(generator_right)}
        print(json.dumps({"pool": str(folder)} | measures))


if __name__ == "__main__":
    main()
