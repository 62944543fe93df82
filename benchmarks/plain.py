"""The plain ways: what one writes first, with the Hugging Face forward pass.

The prompt is repeated for every trajectory or rollout, and a growing cache (DynamicCache) saves the
re-reading of what a row itself has read. Random numbers are those of torch's generator. Rows never
end early: the models that are measured have no end-of-text.

R rows, L prompt length, T thoughts, A answer tokens, D model width.
"""

import inspect
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from transformers import DynamicCache

from src.sampling.samplers import ATTENTION


class Reader:
    """Reads further positions of R rows, by ``model`` with a growing cache.

    last_logits: logits at the last position only, where transformers' default, and the release of
    the paper, computes them at every position that is read.
    """

    def __init__(self, model, last_logits):
        self.model, self.last_logits, self.cache = model, last_logits, DynamicCache()
        # Before transformers 5.24 the argument was past_key_values.
        has_new_name = "cache" in inspect.signature(type(model).forward).parameters
        self.keyword = "cache" if has_new_name else "past_key_values"

    def __call__(self, **inputs):
        """Final hidden state (R, 1, D) and logits (R, V) at the last position."""
        cache, keep = {self.keyword: self.cache}, int(self.last_logits)
        out = self.model(**inputs, **cache, output_hidden_states=True, logits_to_keep=keep)
        return out.hidden_states[-1][:, -1:], out.logits[:, -1]


@contextmanager
def dropping(model, p):
    """Drops the outputs of attention and MLPs, where the architecture has dropout, at rate p."""
    handles = []
    for block in model.blocks if p else ():
        attention, mlp = model.residual_outputs(block)
        for module in (attention, mlp) if ATTENTION in model.dropout_sites else (mlp,):
            hook = module.register_forward_hook(lambda module, args, out: F.dropout(out, p))
            handles.append(hook)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rates(sampling):
    """Dropout rates: in the prompt, in all thoughts but the last, in what follows."""
    p = sampling.dropout_p if sampling.uses_dropout else 0
    return p * sampling.dropout_prompt, p, p * sampling.dropout_answer


@torch.inference_mode()
def sample(model, request, last_logits=False):
    """Thoughts (R, T, D) and answer ids (R, A)."""
    ids = torch.tensor(request.prompts, device=model.device)
    ids = ids.repeat_interleave(request.n_samples, dim=0)  # (R, L)
    read = Reader(model, last_logits)
    with dropping(model, _rates(request.sampling)[0]):
        hidden, _ = read(input_ids=ids)
    thoughts = _think(model, read, request, hidden, 1)
    return torch.cat(thoughts, dim=1), _answer(model, read, request, len(ids))


def _noisy(sampling, thought):
    if sampling.method != "noise":
        return thought
    return thought + sampling.noise_std * torch.randn_like(thought)


def _think(model, read, request, hidden, first):
    """The thoughts from number ``first`` on, (R, 1, D) each; hidden (R, 1, D) becomes the first."""
    _, rate, last_rate = _rates(request.sampling)
    thoughts = []
    for step in range(first, request.latent_length + 1):
        thoughts.append(_noisy(request.sampling, hidden))
        with dropping(model, rate if step < request.latent_length else last_rate):
            hidden, _ = read(inputs_embeds=thoughts[-1])
    return thoughts


def _answer(model, read, request, rows):
    """Greedy answer ids (R, A) after the end-of-thinking token."""
    token = torch.full((rows, 1), model.config.end_latent_token_id, device=model.device)
    tokens = []
    with dropping(model, _rates(request.sampling)[2]):
        for _ in range(request.max_new_tokens):
            token = read(input_ids=token)[1].argmax(-1, keepdim=True)
            tokens.append(token)
    return torch.cat(tokens, dim=1)


@torch.inference_mode()
def annotate(model, request, n_rollouts):
    """Trajectories of one question, and rollouts from each of their thoughts.

    Every rollout reads prompt and prefix anew. The last thought has one rollout: with noise,
    nothing is random after it.
    """
    thoughts, _ = sample(model, request, last_logits=True)  # (N, T, D)
    ids = torch.tensor(request.prompts, device=model.device)  # (1, L)
    for step in range(1, request.latent_length + 1):
        last = step == request.latent_length
        rows = thoughts.repeat_interleave(1 if last else n_rollouts, dim=0)[:, :step]
        x = torch.cat((model.embed(ids).expand(len(rows), -1, -1), rows), dim=1)
        read = Reader(model, last_logits=True)
        hidden, _ = read(inputs_embeds=x)
        _think(model, read, request, hidden, step + 1)
        _answer(model, read, request, len(rows))


@torch.inference_mode()
def beam_search(model, reward_model, request, num_beams, num_proposals):
    """Best beams of one question with noise: thoughts (B, T, D), rewards (B,), answers (B, A).

    Every proposal is a row with a prompt and a cache of its own. The reward model reads prompt and
    thoughts anew at each step.
    """
    ids = torch.tensor(request.prompts, device=model.device)  # (1, L)
    read = Reader(model, last_logits=True)
    rows = num_beams * num_proposals
    hidden, _ = read(input_ids=ids.expand(rows, -1))
    thoughts = hidden[:, :0]  # (R, 0, D)
    for step in range(1, request.latent_length + 1):
        thoughts = torch.cat((thoughts, _noisy(request.sampling, hidden)), dim=1)
        rewards = scores(reward_model, ids, thoughts[None])[0].float().sum(-1)  # (R,)
        kept = rewards.argsort(descending=True, stable=True)[:num_beams]
        if step < request.latent_length:
            kept = kept.repeat_interleave(num_proposals)
        read.cache.reorder_cache(kept)
        thoughts, rewards = thoughts[kept], rewards[kept]
        hidden, _ = read(inputs_embeds=thoughts[:, -1:])
    return thoughts, rewards, _answer(model, read, request, num_beams)


def scores(model, ids, thoughts):
    """Rewards r_t (Q, N, T) of thoughts (Q, N, T, D), each trajectory with its own prompt."""
    rows, length = thoughts.flatten(0, 1), thoughts.shape[2]
    prompts = model.embed(ids).repeat_interleave(thoughts.shape[1], dim=0)  # (R, L, D)
    x = torch.cat((prompts, rows.to(prompts.dtype)), dim=1)  # (R, L + T, D)
    hidden = model.base_model(inputs_embeds=x, use_cache=False).last_hidden_state[:, -length:]
    return model.classify(hidden).unflatten(0, thoughts.shape[:2])
