"""Annotation, scoring and training of LatentRM against the plain ways: python -m benchmarks.latent_rm

GPT-2-small shape with random weights, prompts of 94 tokens, 6 thoughts, one question of 8 trajectories
(scoring: 64). Plain annotation recomputes prompt and prefix for every rollout; plain scoring and
training give every branch a prompt of its own. They call the Hugging Face model, with a cache where
one helps, and compute logits at the last position only. Times are of one run after a short warm-up.
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
    """Completions of every prefix of thoughts (n, T, D), prompt and prefix read anew for each.

    The last thought has one completion: with noise, nothing is random after it.
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
    """Seconds of the rollouts of one question: ours with its trajectories, plain without them."""
    model, ids = build_model(device), prompt_ids().to(device)
    sampling = Sampling("noise", noise_std=NOISE)
    outcomes = iter(range(10**9))

    def ours(m):
        request = Request(ids.tolist(), [0], TRAJECTORIES, THOUGHTS, answer_tokens, 0, sampling)
        return annotate(model, request, m, lambda q, ids: next(outcomes) % 2 == 0)

    thoughts = ours(1).trajectories.thoughts[0]  # warm-up, too
    plain_rollouts(model, ids, thoughts, 1, answer_tokens)
    return timed(device, ours, rollouts), timed(
        device, plain_rollouts, model, ids, thoughts, rollouts, answer_tokens
    )


def reward_model(device):
    torch.manual_seed(0)
    config = GPT2Config(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
    return GPT2LatentRM(config).to(device)


def plain_scores(model, ids, thoughts):
    """r_t (1, N, T) with a prompt of its own for every branch."""
    prompts = model.transformer.wte(ids).expand(thoughts.shape[1], -1, -1)
    x = torch.cat((prompts, thoughts[0]), dim=1)  # (N, L + T, D)
    hidden = model.transformer(inputs_embeds=x, use_cache=False).last_hidden_state[:, -THOUGHTS:]
    return model.classify(hidden)[None]


def shared_scores(model, ids, thoughts):
    return model(ids, torch.ones_like(ids), thoughts)


def scoring(device, branches=64):
    model, ids = reward_model(device).eval(), prompt_ids().to(device)
    thoughts = torch.randn(1, branches, THOUGHTS, model.config.n_embd, device=device)
    ways = []
    for way in (shared_scores, plain_scores):
        with torch.inference_mode():
            way(model, ids, thoughts[:, :2])
            ways.append(timed(device, way, model, ids, thoughts))
    return ways


def training_step(device):
    """Seconds of a step, ours and plain, and the largest difference of their gradients, relative to the
    largest gradient."""
    model, ids = reward_model(device).train(), prompt_ids().to(device)
    shape = (1, TRAJECTORIES, THOUGHTS)
    thoughts = torch.randn(*shape, model.config.n_embd, device=device)
    labels = torch.rand(*shape, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)

    def step(way):
        with training_attention(torch.device(device)):
            optimizer.zero_grad()
            contrastive(way(model, ids, thoughts), labels, labels >= 0).mean().backward()
            optimizer.step()

    seconds, gradients = [], []
    for way in (shared_scores, plain_scores):
        step(way)
        seconds.append(timed(device, step, way))
        gradients.append(
            {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
        )
    one, other = gradients
    largest = max(gradient.abs().max() for gradient in other.values())
    difference = max((one[name] - other[name]).abs().max() for name in one)
    return seconds, (difference / largest).item()


def main():
    parser = argparse.ArgumentParser(prog="benchmarks.latent_rm", description=__doc__)
    parser.add_argument("--rollouts", type=int, default=8, help="M, from every thought")
    parser.add_argument("--answer_tokens", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    (step_seconds, difference) = training_step(args.device)
    pairs = {
        "annotation": annotation(args.device, args.rollouts, args.answer_tokens),
        "scoring": scoring(args.device),
        "training_step": step_seconds,
    }
    for name, (ours, plain) in pairs.items():
        found = {
            "what": name,
            "ours": round(ours, 3),
            "plain": round(plain, 3),
            "ratio": round(plain / ours, 2),
        }
        if name == "training_step":
            found["gradient_difference"] = float(f"{difference:.2g}")
        print(json.dumps(found | {"threads": torch.get_num_threads(), "device": args.device}))


if __name__ == "__main__":
    main()
