"""Attention of new positions to their prompt and to their suffix.

Rows that share a prompt read its keys and values once: one attention over the prompt for all of
them, one over each row's suffix, merged by their log-sum-exp (as in flash attention, Dao et al.,
arXiv 2205.14135). Where a row has a prompt of its own, or gradients or dropped attention weights
are asked for, one softmax over the weights of both parts does the same.

Shapes: G groups (prompts), M rows of each at most, R rows, S new positions, T suffix positions, L
prompt length, H heads, K head width, D model width. H' key-value heads, each for H / H'
neighbouring query heads; U = S * H / H' queries of a key-value head in a row.
"""

import torch
import torch.nn.functional as F

from src.sampling.samplers import PROMPT, SUFFIX


def attend(q, k, v, mask, prefix, layer, drop=None):
    """Attention of the new positions, (R, S, D).

    q (R, S, H, K). k, v (R, H', T, K): the suffix, of which the last S positions of a row are the
    new ones. mask: from ``by_query``, what they do not attend to. prefix: a PrefixCache. drop:
    drops attention weights, see samplers.base.PassHook.attention.
    """
    n_kv_head, width = k.shape[1], q.shape[-1]
    q = (q * width**-0.5).unflatten(2, (n_kv_head, -1)).transpose(1, 2)  # (R, H', S, H / H', K)
    sizes = q.shape
    q, prompt = q.flatten(2, 3), _Prompt(prefix, layer, len(q))  # (R, H', U, K)
    if prompt.members > 1 and drop is None and _has_fused_attention(q):
        out = _merge_by_log_sum_exp(q, k, v, mask, prompt)  # (R, H', U, K)
    else:
        out = _weigh_jointly(q, k, v, mask, prompt, drop, sizes)
    return out.view(sizes).transpose(1, 2).flatten(2)


def _has_fused_attention(q):
    """Whether ``_attend_with_lse`` takes queries like q; it has no gradient."""
    return not q.requires_grad and (q.device.type == "cpu" or q.dtype != torch.float64)


def by_query(mask, heads):
    """What the U queries of a key-value head do not attend to, (R or 1, 1, U, T), or None.

    mask (R or 1, S, T): the same of the S new positions, or None. heads: H / H'.
    """
    if mask is None:
        return None
    return mask[:, None, :, None].expand(-1, -1, -1, heads, -1).flatten(2, 3)


class _Prompt:
    """The prompts' part: keys and values (G, H', L, K) of a layer, and who reads them."""

    def __init__(self, prefix, layer, rows):
        self.k, self.v = prefix.layers[layer]
        self.bias, self.grouping = prefix.bias, prefix.grouping
        if self.grouping is not None and self.grouping.repeats is not None:
            repeats = self.grouping.repeats
            self.k, self.v = self.k[repeats], self.v[repeats]
            self.bias = None if self.bias is None else self.bias[repeats]
        if self.bias is not None:  # cut last: an index would drop the room that aligns its rows
            self.bias = self.bias[..., : self.k.shape[2]]
        self.groups = len(self.k)
        self.members = rows // self.groups if self.grouping is None else self.grouping.members

    def by_group(self, x):
        """(R, H', U, X) -> (G, H', M * U, X)."""
        if self.grouping is not None:
            x = x[self.grouping.pick]
        x = x.unflatten(0, (self.groups, self.members)).transpose(1, 2)  # (G, H', M, U, X)
        return x.flatten(2, 3)

    def by_row(self, x):
        """(G, H', M * U, X) -> (R, H', U, X)."""
        x = x.unflatten(2, (self.members, -1)).transpose(1, 2).flatten(0, 1)  # (G * M, H', U, X)
        return x if self.grouping is None else x[self.grouping.place]


def _merge_by_log_sum_exp(q, k, v, mask, prompt):
    """The prompt's whole output counts as one more key of the suffix: its log-sum-exp is the score
    of that key, the output its value."""
    of_prompt, lse = _attend_with_lse(prompt.by_group(q), prompt.k, prompt.v, prompt.bias)
    of_prompt, lse = prompt.by_row(of_prompt), prompt.by_row(lse[..., None])  # (R, H', U, K or 1)
    scores = _scores(q, k, mask)  # (R * H', U, T)
    scores = torch.cat((scores, lse.reshape(*scores.shape[:2], 1)), dim=-1)  # (R * H', U, T + 1)
    weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
    out = torch.bmm(weights[..., :-1], v.flatten(0, 1)).view(q.shape)
    return torch.addcmul(out, weights[..., -1:].view(*q.shape[:3], 1), of_prompt)


def _weigh_jointly(q, k, v, mask, prompt, drop, sizes):
    """One softmax over the scores of both parts."""
    to_suffix = _scores(q, k, mask).view(*q.shape[:3], -1)  # (R, H', U, T)
    to_prompt = prompt.by_group(q) @ prompt.k.mT  # (G, H', M * U, L)
    if prompt.bias is not None:
        to_prompt = to_prompt + prompt.bias
    # The suffix comes first: padding at the prompt's end then shifts no other element.
    scores = torch.cat((to_suffix, prompt.by_row(to_prompt)), dim=-1)  # (R, H', U, T + L)
    weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
    of_suffix, of_prompt = weights.split((k.shape[2], prompt.k.shape[2]), dim=-1)
    if drop is not None:
        of_suffix, of_prompt = (
            _drop(drop, x, part, sizes) for x, part in ((of_suffix, SUFFIX), (of_prompt, PROMPT))
        )
    of_prompt = prompt.by_row(prompt.by_group(of_prompt) @ prompt.v)  # (R, H', U, K)
    parts = (of_prompt, of_suffix, v)
    return torch.baddbmm(*(x.flatten(0, 1) for x in parts)).view(q.shape)


def _scores(q, k, mask):
    """Scores (R * H', U, T) of queries (R, H', U, K) at keys (R, H', T, K)."""
    scores = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT)
    if mask is not None:
        by_row = scores.view(*q.shape[:3], -1)
        scores = by_row.masked_fill(mask, float("-inf")).view_as(scores)
    return scores


def _drop(drop, weights, part, sizes):
    """Drops attention weights (R, H', U, X) of one part; ``drop`` takes them by head and query."""
    rows, n_kv_head, new, queries, _ = sizes
    by_head = weights.view(rows, n_kv_head, new, queries, -1).transpose(2, 3).flatten(1, 2)
    by_head = drop(by_head, part).unflatten(1, (n_kv_head, queries))  # (R, H', H / H', S, X)
    return by_head.transpose(2, 3).reshape(weights.shape)


def _attend_with_lse(q, k, v, bias):
    """Attention of q (B, H, M, K), already scaled, and the log-sum-exp of its scores, (B, H, M).

    torch has no public function that gives both. bias (B, 1, 1, L) or None is added to the scores.
    """
    if q.device.type == "cuda":
        if bias is not None:
            bias = bias.expand(*q.shape[:3], -1)
        run = torch.ops.aten._scaled_dot_product_efficient_attention
        out, lse = run(q, k, v, bias, True, scale=1.0)[:2]
        return out, lse[..., : q.shape[2]]  # it is padded to a multiple of 32
    run = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return run(q, k, v, attn_mask=bias, scale=1.0)


def attend_in_prompt(q, k, v, drop=None):
    """Causal attention of prompts to themselves: q (G, L, H, K), k and v (G, H', L, K).

    drop: drops attention weights, see samplers.base.PassHook.attention. Returns (G, L, D).
    """
    q = q.transpose(1, 2)
    grouped = q.shape[1] != k.shape[1]
    if drop is None:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    else:
        future = torch.ones(2 * (q.shape[2],), dtype=torch.bool, device=q.device).triu(1)
        bias = torch.zeros_like(future, dtype=q.dtype).masked_fill_(future, float("-inf"))
        out = _attend_by_weights(q, k, v, bias, drop)
    return out.transpose(1, 2).flatten(2)


def attend_from_last(q, k, v, bias, drop=None):
    """Attention of each prompt's last token: q (G, 1, H, K), k and v (G, H', L, K).

    bias: PrefixCache.bias. Returns (G, 1, D).
    """
    q = q.transpose(1, 2)
    grouped = q.shape[1] != k.shape[1]
    bias = None if bias is None else bias[..., : k.shape[2]]
    if drop is None:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=grouped)
    else:
        out = _attend_by_weights(q, k, v, 0 if bias is None else bias, drop)
    return out.transpose(1, 2).flatten(2)


def _attend_by_weights(q, k, v, bias, drop):
    """Attention (G, H, S, K) of a prompt's tokens whose weights are dropped."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.mT + bias  # (G, H, S, L)
    return drop(scores.softmax(-1, dtype=torch.float32).to(v.dtype), PROMPT) @ v
