"""The plain way to sample: one trajectory at a time, no cache, every forward over all positions.

The Hugging Face model runs as it is; its own dropout modules, which sit at the sites where sampling
drops (after attention, after the MLP), are replaced by masks from the same counters.
"""

from contextlib import contextmanager

import torch

from src.models.gpt2 import ATTENTION, MLP
from src.sampling import rng
from src.sampling.rollouts import _ROLLOUT
from src.sampling.samplers import _EMBEDDING_SITE, _NOISE_SITE, _WHOLE_TRAJECTORY


@contextmanager
def masked(model, mask_of, embedding=False):
    """Multiplies the outputs of the dropout modules by ``mask_of(layer, site)``, (length, D).

    With ``embedding`` also that of the embeddings, by ``mask_of(None, None)``.
    """
    handles = []
    if embedding:
        hook = lambda _, __, out: out * mask_of(None, None)  # noqa: E731
        handles.append(model.transformer.drop.register_forward_hook(hook))
    for layer, block in enumerate(model.transformer.h):
        for site, module in ((ATTENTION, block.attn.resid_dropout), (MLP, block.mlp.dropout)):
            hook = lambda _, __, out, layer=layer, site=site: out * mask_of(layer, site)  # noqa: E731
            handles.append(module.register_forward_hook(hook))
    yield
    for handle in handles:
        handle.remove()


def key_of(seed, question, n):
    """The random key of sample ``n`` of ``question``."""
    return rng.row_keys(seed, torch.tensor([question]), torch.tensor([n]), "cpu")[0]


def sample_one(model, prompt, question, n, latent_length, max_new_tokens, seed, sampling):
    """Thoughts (T, D) and answer ids of sample ``n`` of ``question``."""
    key = key_of(seed, question, n)
    return continue_one(model, prompt, [], key, key, latent_length, max_new_tokens, sampling)


def rollout_key(key, step, m):
    """The random key of completion ``m`` from thought number ``step`` of a trajectory of key ``key``."""
    return rng.fold(rng.fold(key, _ROLLOUT + step), m)


def continue_one(model, prompt, prefix, key, new_key, latent_length, max_new_tokens, sampling):
    """Thoughts (T, D), the given ``prefix`` first, and answer ids.

    ``key`` is that of the trajectory which made the prefix, ``new_key`` that of what follows it.
    """
    width, length = model.config.n_embd, len(prompt)
    last_thought = length + latent_length - 1  # its position
    own_from = length + len(prefix) - 1 if prefix else 0  # first position under new_key

    def mask_of(layer, site, positions):
        rows = []
        for position in range(positions):
            off = not sampling.drops or (position < length and not sampling.dropout_prompt)
            if off or (position >= last_thought and not sampling.dropout_answer):
                rows.append(torch.ones(width))
                continue
            step = position - (length - 1)
            step = _WHOLE_TRAJECTORY if sampling.dropout_mask == "trajectory" else step
            keys = rng.fold(new_key if position >= own_from else key, step)
            where = _EMBEDDING_SITE if site is None else 2 * layer + site
            rows.append((~rng.dropped(keys, where, width, sampling.dropout_p)).float())
            rows[-1] /= 1 - sampling.dropout_p
        return torch.stack(rows)

    def forward(x):  # (length, D) -> final hidden state of the last position, (D,)
        drop = sampling.dropout_embedding
        with masked(model, lambda layer, site: mask_of(layer, site, len(x)), drop):
            return model.transformer(inputs_embeds=x[None]).last_hidden_state[0, -1]

    x = model.transformer.wte(torch.tensor(prompt))
    thoughts, tokens = list(prefix), []
    x = torch.cat((x, *(thought[None] for thought in thoughts)))
    for t in range(len(prefix) + 1, latent_length + 1):
        thought = forward(x)
        if sampling.by == "noise":
            noise = rng.normal(rng.fold(new_key, t), _NOISE_SITE, width)
            thought = thought + sampling.noise_std * noise
        thoughts.append(thought)
        x = torch.cat((x, thought[None]))
    token = model.config.end_latent_token_id
    while len(tokens) < max_new_tokens:
        x = torch.cat((x, model.transformer.wte(torch.tensor([token]))))
        token = int(model.lm_head(forward(x)).argmax())
        if token == model.config.eos_token_id:
            break
        tokens.append(token)
    return torch.stack(thoughts), tokens
