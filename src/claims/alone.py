"""What a reward model answers by itself, without a choice among trajectories."""

import torch

from src.models.loading import load_backbone, load_reward_model
from src.runs.finished_runs import read_json
from utils import records


@torch.inference_mode()
def answers_right(model, latents, gold):
    """Whether the greedy answer after the first trajectory's thoughts is ``gold``, ids (A,)."""
    ids = latents["input_ids"][None]  # (1, L)
    thoughts = latents["latent_embeds"][None, :1]  # (1, 1, T, D)
    num_thoughts = latents["latent_lengths"][None, :1]  # (1, 1)
    _, logits = model.read(ids, torch.ones_like(ids), thoughts, num_thoughts, gold[None, None])
    return bool((logits[0, 0].argmax(-1) == gold).all())  # (A, V), (A,)


def answers_alone(prm_id, pools):
    """Whether the reward model's own answer and the first trajectory's are right.

    pools: {name: folder} of runs of one backbone with --save_latents true. The model reads the
    thoughts of each question's first trajectory. Returns {name: {"reward_model": [..], "first":
    [..]}}, a bool a question; {name: {}} where the reward model can't answer.
    """
    settings = read_json(next(iter(pools.values())) / "config.json")["settings"]
    backbone, tokenizer = load_backbone(settings["model_type"], settings["model_id"])
    model = load_reward_model(prm_id, backbone, tokenizer)
    if not model.scores_answer:
        return {name: {} for name in pools}

    def of_pool(folder):
        right = {"reward_model": [], "first": []}
        for idx, record in sorted(records.read(folder).items()):
            text = backbone.format_answer(record["answer"]) + tokenizer.eos_token
            gold = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
            latents = records.read_latents(records.latents_path(folder, idx))
            right["reward_model"].append(answers_right(model, latents, gold))
            right["first"].append(record["correct"][0])
        return right

    return {name: of_pool(folder) for name, folder in pools.items()}
