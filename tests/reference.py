"""The plain way to sample: one trajectory at a time, no cache, every forward over all positions.

The Hugging Face model runs as it is; its own dropout modules, which sit at the sites where sampling
drops (after attention, after the MLP), are replaced by masks from the same counters.
"""

from contextlib import contextmanager

import torch
from transformers import LlamaForCausalLM

from src.models.colar import CoLaR
from src.sampling import rng
from src.sampling.rollouts import _ROLLOUT
from src.sampling.samplers import _EMBEDDING_SITE, _NOISE_SITE, _WHOLE_TRAJECTORY, ATTENTION, MLP


@contextmanager
def masked(model, mask_of, embedding=False):
    """Multiplies the outputs of the dropout modules by ``mask_of(layer, site)``, (length, D).

    With ``embedding`` also that of the embeddings, by ``mask_of(None, None)``. A LLaMA has no dropout
    modules: there it is the outputs of the MLPs, as in the release.
    """
    places = []
    if isinstance(model, LlamaForCausalLM):
        places = [(block.mlp, layer, MLP) for layer, block in enumerate(model.model.layers)]
    else:
        for layer, block in enumerate(model.transformer.h):
            places += [
                (block.attn.resid_dropout, layer, ATTENTION),
                (block.mlp.dropout, layer, MLP),
            ]
        if embedding:
            places.append((model.transformer.drop, None, None))
    handles = []
    for module, layer, site in places:
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


def thought_of(model, hidden):
    """The thought that each backbone makes of a hidden state (D,), spelled out (spec, section 2)."""
    if isinstance(model, CoLaR):
        head = model.lt_head
        return head.mean(head.fc(hidden)) * model.config.latent_embedding_std
    return model.projector(hidden) if getattr(model.config, "projector", False) else hidden


def continue_one(model, prompt, prefix, key, new_key, latent_length, max_new_tokens, sampling):
    """Thoughts (T, D), the given ``prefix`` first, and answer ids.

    ``key`` is that of the trajectory which made the prefix, ``new_key`` that of what follows it.
    """
    width, length = model.config.hidden_size, len(prompt)
    own_from = length + len(prefix) - 1 if prefix else 0  # first position under new_key
    # from this position on dropout belongs to the answer; a model that stops itself can't know its last thought
    answer_from = 10**9 if model.stops_itself else length + latent_length - 1
    body = model.model if isinstance(model, LlamaForCausalLM) else model.transformer

    def mask_of(layer, site, positions):
        rows = []
        for position in range(positions):
            off = not sampling.uses_dropout or (position < length and not sampling.dropout_prompt)
            if off or (position >= answer_from and not sampling.dropout_answer):
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
            return body(inputs_embeds=x[None]).last_hidden_state[0, -1]

    embed = model.get_input_embeddings()
    end = model.config.end_latent_token_id
    x = embed(torch.tensor(prompt))
    thoughts, tokens = list(prefix), []
    x = torch.cat((x, *(thought[None] for thought in thoughts)))
    while len(thoughts) < latent_length:
        hidden = forward(x)
        if model.stops_itself and thoughts and int(model.lm_head(hidden).argmax()) == end:
            break
        thought = thought_of(model, hidden)
        if sampling.method == "noise":
            noise = rng.normal(rng.fold(new_key, len(thoughts) + 1), _NOISE_SITE, width)
            thought = thought + sampling.noise_std * noise
        thoughts.append(thought)
        x = torch.cat((x, thought[None]))
    if model.stops_itself:
        answer_from = length + len(thoughts)
    token = end
    while len(tokens) < max_new_tokens:
        x = torch.cat((x, embed(torch.tensor([token]))))
        token = int(model.lm_head(forward(x)).argmax())
        if token == model.config.eos_token_id:
            break
        tokens.append(token)
    return torch.stack(thoughts), tokens
