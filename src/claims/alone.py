"""What a reward model answers by itself, without a choice among trajectories."""

import torch
from safetensors.torch import load_file

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


def answers_alone(prm_id, folder):
    """{"reward_model": [..], "first": [..]}: for each question of a saved pool, whether the reward
    model's own answer and the first trajectory's are right; {} where the model can't answer.

    The model reads the thoughts of the first trajectory. folder: a run of src.infer_gpt2 or
    src.infer_llama with --save_latents true.
    """
    settings = read_json(folder / "config.json")["settings"]
    backbone, tokenizer = load_backbone(settings["model_type"], settings["model_id"])
    model = load_reward_model(prm_id, backbone, tokenizer)
    if not model.scores_answer:
        return {}
    right, first = [], []
    for idx, record in sorted(records.read(folder).items()):
        text = backbone.format_answer(record["answer"]) + tokenizer.eos_token
        gold = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
        latents = load_file(records.latents_path(folder, idx))
        right.append(answers_right(model, latents, gold))
        first.append(record["correct"][0])
    return {"reward_model": right, "first": first}
