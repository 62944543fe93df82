"""The plain way to sample: one trajectory at a time, no cache, every forward over all positions.

The Hugging Face model runs as it is; its own dropout modules, which sit at the sites where sampling
drops (after attention, after the MLP), are replaced by masks from the same counters.
"""

from contextlib import contextmanager

import torch

from src.models.gpt2 import ATTENTION, MLP
from src.sampling import rng
from src.sampling.samplers import _NOISE_SITE, _WHOLE_TRAJECTORY


@contextmanager
def masked(model, mask_of):
    """Multiplies the outputs of the dropout modules by ``mask_of(layer, site)``, (length, D)."""
    handles = []
    for layer, block in enumerate(model.transformer.h):
        for site, module in ((ATTENTION, block.attn.resid_dropout), (MLP, block.mlp.dropout)):
            hook = lambda _, __, out, layer=layer, site=site: out * mask_of(layer, site)  # noqa: E731
            handles.append(module.register_forward_hook(hook))
    yield
    for handle in handles:
        handle.remove()


def sample_one(model, prompt, question, n, latent_length, max_new_tokens, seed, sampling):
    """Thoughts (T, D) and answer ids of sample ``n`` of ``question``."""
    key = rng.row_keys(seed, torch.tensor([question]), torch.tensor([n]), "cpu")[0]
    width, length = model.config.n_embd, len(prompt)
    last_thought = length + latent_length - 1  # its position

    def mask_of(layer, site, positions):
        rows = []
        for position in range(positions):
            off = not sampling.drops or (position < length and not sampling.dropout_prompt)
            if off or (position >= last_thought and not sampling.dropout_answer):
                rows.append(torch.ones(width))
                continue
            step = position - (length - 1)
            step = _WHOLE_TRAJECTORY if sampling.dropout_mask == "trajectory" else step
            dropped = rng.dropped(rng.fold(key, step), 2 * layer + site, width, sampling.dropout_p)
            rows.append((~dropped).float() / (1 - sampling.dropout_p))
        return torch.stack(rows)

    def forward(x):  # (length, D) -> final hidden state of the last position, (D,)
        with masked(model, lambda layer, site: mask_of(layer, site, len(x))):
            return model.transformer(inputs_embeds=x[None]).last_hidden_state[0, -1]

    x = model.transformer.wte(torch.tensor(prompt))
    thoughts, tokens = [], []
    for t in range(1, latent_length + 1):
        thought = forward(x)
        if sampling.by == "noise":
            thought = thought + sampling.noise_std * rng.normal(rng.fold(key, t), _NOISE_SITE, width)
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
