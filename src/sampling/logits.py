"""What is read off the logits of many rows. They are computed in chunks: large vocabularies."""

import torch

from src.sampling.memory import logits_within


def next_tokens(model, hidden):
    """The likeliest next tokens (R,) at hidden states (R, D)."""
    return in_chunks(model, _likeliest, hidden)


def _likeliest(logits):
    return logits.argmax(-1)


def in_chunks(model, choose, hidden, *of_rows, logit_bytes=None):
    """choose(logits (r, V), *of_rows (r,)), tokens (r,), for hidden states (R, D) in chunks.

    logit_bytes: see ``logits_within``.
    """
    size = logits_within(model, logit_bytes)
    chunks = [x.split(size) for x in (hidden, *of_rows)]
    tokens = [choose(model.lm_head(states), *rest) for states, *rest in zip(*chunks, strict=True)]
    return tokens[0] if len(tokens) == 1 else torch.cat(tokens)


def token_log_probs(model, weight, hidden, ids):
    """log p (..., A), float32, of token ids (..., A) at the hidden states (..., A, D) before them.

    weight (V, D): the output layer of ``model``.
    """
    size = logits_within(model)
    chunks = zip(hidden.flatten(0, -2).split(size), ids.flatten()[:, None].split(size), strict=True)
    log_probs = [
        (states @ weight.T).float().log_softmax(-1).gather(-1, tokens) for states, tokens in chunks
    ]
    return torch.cat(log_probs).view(ids.shape)
