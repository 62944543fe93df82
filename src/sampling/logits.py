"""What is read off the logits of many rows. They are computed in chunks: large vocabularies."""

import math

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


def token_confidence(model, hidden, ids):
    """Of token ids (..., A) at the hidden states (..., A, D) before them: (..., A, 2), float32.

    The two are log p of the token, and the divergence of the uniform distribution from the token's,
    KL(uniform || p) = -log V - mean over the V words of log p.
    """
    size, pairs = logits_within(model), []
    for states, tokens in zip(
        hidden.flatten(0, -2).split(size), ids.flatten()[:, None].split(size), strict=True
    ):
        log_p = model.lm_head(states).float().log_softmax(-1)  # (r, V)
        certainty = -log_p.mean(-1, keepdim=True) - math.log(log_p.shape[1])
        pairs.append(torch.cat((log_p.gather(-1, tokens), certainty), dim=1))
    return torch.cat(pairs).view(*ids.shape, 2)
