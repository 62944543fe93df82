"""Annotation, scoring and training of LatentRM against plain ways: python -m benchmarks.latent_rm

GPT-2-small shape with random weights, prompts of 94 tokens, 6 thoughts, one question of 8
trajectories (scoring: 64). Plain annotation recomputes prompt and prefix for every rollout; plain
scoring and training give every trajectory a prompt of its own. They call the Hugging Face model,
with a cache where one helps, and compute logits at the last position only. Times are of one run
after a short warm-up.
"""

import argparse
import json

import torch
from transformers import DynamicCache, GPT2Config

from benchmarks.sampling import build_model, cached, timed
from src.models.latent_rm import GPT2LatentRM
from src.sampling.rollouts import annotate
from src.sampling.samplers import Sampling
from src.sampling.trajectories import Request
from src.training.attention import training_attention
from src.training.losses.latent_rm import contrastive

PROMPT, THOUGHTS, TRAJECTORIES = 94, 6, 8
NOISE = 0.6


def prompt_ids(count=1):
    return torch.randint(0, 50000, (count, PROMPT), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def plain_rollouts(model, ids, thoughts, rollouts, answer_tokens):
    """Rollouts from every prefix of thoughts (N, T, D), each of which reads prompt and prefix.

    The last thought has one rollout: with noise, nothing is random after it.
    """
    for step in range(1, THOUGHTS + 1):
        rows = thoughts.repeat_interleave(rollouts if step < THOUGHTS else 1, dim=0)
        x = torch.cat((model.embed(ids).expand(len(rows), -1, -1), rows[:, :step]), dim=1)
        cache = DynamicCache()

        def read(cache=cache, **inputs):
            return model(**inputs, **cached(cache), output_hidden_states=True, logits_to_keep=1)

        hidden = read(inputs_embeds=x).hidden_states[-1][:, -1:]  # (R, 1, D)
        for _ in range(THOUGHTS - step):
            thought = hidden + NOISE * torch.randn_like(hidden)
            hidden = read(inputs_embeds=thought).hidden_states[-1]
        token = torch.full((len(rows), 1), model.config.end_latent_token_id, device=ids.device)
        for _ in range(answer_tokens):
            token = read(input_ids=token).logits[:, -1:].argmax(-1)


def annotation(device, rollouts, answer_tokens):
    """Seconds of the rollouts of one question; ours include the trajectories."""
    model, ids = build_model(device), prompt_ids().to(device)
    sampling = Sampling("noise", noise_std=NOISE)
    outcomes = iter(range(10**9))

    def ours(m):
        request = Request(ids.tolist(), [0], TRAJECTORIES, THOUGHTS, answer_tokens, 0, sampling)
        return annotate(model, request, m, lambda q, ids: next(outcomes) % 2 == 0)

    thoughts = ours(1).trajectories.thoughts[0]  # also the warm-up
    plain_rollouts(model, ids, thoughts, 1, answer_tokens)
    ours_seconds = timed(device, ours, rollouts)
    plain = (plain_rollouts, model, ids, thoughts, rollouts, answer_tokens)
    return ours_seconds, timed(device, *plain)


def reward_model(device):
    torch.manual_seed(0)
    config = GPT2Config(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
    return GPT2LatentRM(config).to(device)


def plain_scores(model, ids, thoughts):
    """r_t (1, N, T), every trajectory with a prompt of its own."""
    prompts = model.transformer.wte(ids).expand(thoughts.shape[1], -1, -1)
    x = torch.cat((prompts, thoughts[0]), dim=1)  # (N, L + T, D)
    hidden = model.transformer(inputs_embeds=x, use_cache=False).last_hidden_state[:, -THOUGHTS:]
    return model.classify(hidden)[None]


def shared_scores(model, ids, thoughts):
    return model(ids, torch.ones_like(ids), thoughts)


def scoring(device, trajectories=64):
    """Seconds of scoring the trajectories of one question, ours and plain."""
    model, ids = reward_model(device).eval(), prompt_ids().to(device)
    thoughts = torch.randn(1, trajectories, THOUGHTS, model.config.n_embd, device=device)
    seconds = []
    for scores in (shared_scores, plain_scores):
        with torch.inference_mode():
            scores(model, ids, thoughts[:, :2])
            seconds.append(timed(device, scores, model, ids, thoughts))
    return seconds


def training_step(device):
    """Seconds of a training step, ours and plain, and the largest difference of their gradients.

    The difference is relative to the largest gradient.
    """
    model, ids = reward_model(device).train(), prompt_ids().to(device)
    shape = (1, TRAJECTORIES, THOUGHTS)
    thoughts = torch.randn(*shape, model.config.n_embd, device=device)
    labels = torch.rand(*shape, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)

    def step(scores):
        with training_attention(torch.device(device)):
            optimizer.zero_grad()
            contrastive(scores(model, ids, thoughts), labels, labels >= 0).mean().backward()
            optimizer.step()

    seconds, gradients = [], []
    for scores in (shared_scores, plain_scores):
        step(scores)
        seconds.append(timed(device, step, scores))
        gradients.append(
            {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
        )
    ours, plain = gradients
    largest = max(gradient.abs().max() for gradient in plain.values())
    difference = max((ours[name] - plain[name]).abs().max() for name in ours)
    return seconds, (difference / largest).item()


def main():
    parser = argparse.ArgumentParser(prog="benchmarks.latent_rm", description=__doc__)
    parser.add_argument("--rollouts", type=int, default=8, help="from every thought")
    parser.add_argument("--answer_tokens", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    step_seconds, difference = training_step(args.device)
    pairs = {
        "annotation": annotation(args.device, args.rollouts, args.answer_tokens),
        "scoring": scoring(args.device),
        "training_step": step_seconds,
    }
    for name, (ours, plain) in pairs.items():
        figures = {
            "what": name,
            "ours": round(ours, 3),
            "plain": round(plain, 3),
            "ratio": round(plain / ours, 2),
        }
        if name == "training_step":
            figures["gradient_difference"] = float(f"{difference:.2g}")
        print(json.dumps(figures | {"threads": torch.get_num_threads(), "device": args.device}))


if __name__ == "__main__":
    main()
