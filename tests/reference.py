"""The plain way to sample: one trajectory at a time, no cache, every forward over all positions.

The Hugging Face model runs as it is. Forward hooks multiply the outputs at its dropout sites (after
attention, after the MLP) by masks from the engine's random keys; attention written out does so with
its weights. Other hooks compute linear maps anew with perturbed weights.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from transformers import AttentionInterface, LlamaForCausalLM

from src.models.colar import CoLaR
from src.sampling import rng
from src.sampling.rollouts import _ROLLOUT
from src.sampling.samplers import ATTENTION, MLP, PROMPT, SUFFIX, Sampling, svp, weight_noise
from src.sampling.samplers.dropout import _EMBEDDING_SITE, _WEIGHTS_SITE, _WHOLE_TRAJECTORY
from src.sampling.samplers.noise import _NOISE_SITE
from src.sampling.samplers.tokens import _TOKEN_SITE

NEVER = 10**9  # as a position: beyond every sequence


def sample_one(model, prompt, question, n, latent_length, max_new_tokens, seed, sampling):
    """Thoughts (T, D) and answer ids of sample ``n`` of ``question``."""
    key = key_of(seed, question, n)
    return continue_one(model, prompt, [], key, key, latent_length, max_new_tokens, sampling)


def key_of(seed, question, n):
    """The random key of sample ``n`` of ``question``."""
    return rng.row_keys(seed, torch.tensor([question]), torch.tensor([n]), "cpu")[0]


def rollout_key(key, step, m):
    """The random key of rollout ``m`` from thought number ``step`` of a trajectory with ``key``."""
    return rng.fold(rng.fold(key, _ROLLOUT + step), m)


def continue_one(model, prompt, prefix, key, new_key, latent_length, max_new_tokens, sampling):
    """Thoughts (T, D), the given ``prefix`` first, and answer ids.

    ``key`` is that of the trajectory which made the prefix, ``new_key`` that of what follows it.
    """
    reader = _Reader(model, sampling, key, new_key, prompt_length=len(prompt))
    reader.new_from = len(prompt) + len(prefix) - 1 if prefix else 0
    if not model.stops_itself:  # dropout in the forward pass of the last thought is the answer's
        reader.answer_from = len(prompt) + latent_length - 1
    x = torch.cat((_embed(model, prompt), *(thought[None] for thought in prefix)))
    x, thoughts = _think(model, reader, x, prefix, latent_length)
    if model.stops_itself:  # it can't know which thought is its last
        reader.answer_from = len(prompt) + len(thoughts)
    reader.end = len(prompt) + len(thoughts)
    return torch.stack(thoughts), _decode(model, reader, x, max_new_tokens)


def _think(model, reader, x, prefix, latent_length):
    """The inputs (length, D) with all thoughts, and the thoughts, ``prefix`` first."""
    sampling, thoughts = reader.sampling, list(prefix)
    while len(thoughts) < latent_length:
        hidden = reader.read(x)
        if thoughts and ends_thinking(model, hidden):
            break
        thought = thought_of(model, hidden)
        if "noise" in methods_of(sampling):
            noise = noise_of(reader.new_key, len(thoughts) + 1, len(thought))
            thought = thought + sampling.noise_std * noise
        thoughts.append(thought)
        x = torch.cat((x, thought[None]))
    return x, thoughts


def _decode(model, reader, x, max_new_tokens):
    """The ids of the answer after inputs x (length, D) and the end-of-thinking token."""
    token, tokens = model.config.end_latent_token_id, []
    while len(tokens) < max_new_tokens:
        x = torch.cat((x, _embed(model, [token])))
        token = reader.choose(model.lm_head(reader.read(x)), step=len(x) - reader.prompt_length)
        if token == model.config.eos_token_id:
            break
        tokens.append(token)
    return tokens


def methods_of(sampling):
    """The samplers of a Sampling, by name."""
    return (sampling.method or "").split("+")


def _embed(model, ids):
    return model.get_input_embeddings()(torch.tensor(ids))


def ends_thinking(model, hidden):
    """Whether the model ends its latent phase at a hidden state (D,)."""
    end = model.config.end_latent_token_id
    return model.stops_itself and int(model.lm_head(hidden).argmax()) == end


def thought_of(model, hidden):
    """The thought that each backbone makes of a hidden state (D,), written out."""
    if isinstance(model, CoLaR):
        head = model.lt_head
        return head.mean(head.fc(hidden)) * model.config.latent_embedding_std
    return model.projector(hidden) if getattr(model.config, "projector", False) else hidden


@torch.no_grad()
def hidden_after(model, prompt, thoughts):
    """The final hidden state (D,) after a prompt and thoughts, by the Hugging Face model."""
    x = torch.cat((model.embed(torch.tensor(prompt)), *(thought[None] for thought in thoughts)))
    return model.base_model(inputs_embeds=x[None]).last_hidden_state[0, -1]


@torch.no_grad()
def plain_log_probs(model, prompt, thoughts, text):
    """log p (A, V) of every word at each token of a text, by one pass of Hugging Face's model."""
    answer = [model.config.end_latent_token_id, *text[:-1]]
    parts = (model.embed(torch.tensor(prompt)), thoughts, model.embed(torch.tensor(answer)))
    logits = model(inputs_embeds=torch.cat(parts)[None]).logits[0, -len(text) :]
    return logits.log_softmax(-1)


def noise_of(key, step, width):
    """Standard normal noise (D,) of thought number ``step``."""
    return rng.normal(rng.fold(key, step), _NOISE_SITE, width)


@dataclass
class _Reader:
    """Reads sequences under the dropout masks of one trajectory.

    key, new_key: random keys of the positions before and from ``new_from`` on. From position
    ``answer_from`` on dropout belongs to the answer. end: of the end-of-thinking token.
    """

    model: object
    sampling: Sampling
    key: torch.Tensor
    new_key: torch.Tensor
    prompt_length: int
    new_from: int = 0
    answer_from: int = NEVER
    end: int = NEVER
    weights: dict = field(default_factory=dict)  # the perturbed ones so far

    def read(self, x):
        """The final hidden state (D,) at the last of the inputs x (length, D)."""
        with masked(self.model, self.masks, self.sampling, self.weight_masks), perturbed(self):
            return self.model.base_model(inputs_embeds=x[None]).last_hidden_state[0, -1]

    def choose(self, logits, step):
        """The answer token that follows the one that was read at ``step``, by logits (V,)."""
        if "tokens" not in methods_of(self.sampling):
            return int(logits.argmax())
        uniform = float(rng.uniform(rng.fold(self.new_key, step), _TOKEN_SITE))
        p = (logits.double() / self.sampling.temperature).softmax(-1).tolist()
        order = range(len(p))
        if self.sampling.top_p < 1:
            order, mass = [], 0.0
            for token in sorted(range(len(p)), key=lambda token: -p[token]):
                if mass < self.sampling.top_p:
                    order.append(token)
                mass += p[token]
            order.sort()
        left = uniform * sum(p[token] for token in order)
        for token in order:
            left -= p[token]
            if left < 0:
                return token

    def weight_of(self, name, layer, weight, key):
        """A weight (I, O) as a sampler perturbs it for the trajectory of ``key``."""
        place = (name, layer, int(key))
        if place not in self.weights:
            self.weights[place] = self._perturb(name, layer, weight, key)
        return self.weights[place]

    def _perturb(self, name, layer, weight, key):
        if name == "svp":
            u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
            sign = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()  # (1, K)
            g = rng.normal(rng.fold(key, svp._WHOLE_TRAJECTORY), layer, len(s))
            s = s * self.sampling.svp_alpha * g
            return weight + ((u * sign) @ torch.diag(s) @ (vt * sign.T)).to(weight)
        key = rng.fold(rng.fold(key, weight_noise._WHOLE_TRAJECTORY), layer)
        noise = rng.normal(key, torch.arange(len(weight)), weight.shape[1])
        return weight + self.sampling.weight_noise_std * noise.to(weight)

    def change(self, name, layer, x, weight):
        """x @ (the perturbed weight - weight) for x (length, I), at the positions that see it."""
        first = 0 if name == "weight_noise" or self.sampling.svp_prompt else self.prompt_length
        change = x.new_zeros(len(x), weight.shape[1])
        for key, start, stop in ((self.key, first, self.new_from), (self.new_key, first, self.end)):
            at = slice(start if key is self.key else max(start, self.new_from), stop)
            other = self.weight_of(name, layer, weight, key)
            change[at] = x[at] @ other - x[at] @ weight
        return change

    def masks(self, layer, site, length):
        """What the outputs (length, D) at a dropout site are multiplied by."""
        site = _EMBEDDING_SITE if site is None else 2 * layer + site
        width, p = self.model.config.hidden_size, self.sampling.dropout_p
        return self._masks(rng.dropped(self._step_keys(length), site, width, p))

    def weight_masks(self, layer, length):
        """What the attention weights (heads, length, length) of a layer are multiplied by."""
        keys, p = rng.fold(self._step_keys(length), _WEIGHTS_SITE), self.sampling.dropout_p
        parts = {PROMPT: self.prompt_length, SUFFIX: max(0, length - self.prompt_length)}
        heads = torch.arange(self.model.config.num_attention_heads)[:, None]
        of_heads = rng.fold(keys, heads)  # (heads, length)
        dropped = [rng.dropped(of_heads, 2 * layer + part, n, p) for part, n in parts.items()]
        return self._masks(torch.cat(dropped, dim=-1))

    def _step_keys(self, length):
        """The random keys of the queries, (length,)."""
        positions = torch.arange(length)
        steps = positions - (self.prompt_length - 1)
        if self.sampling.dropout_mask == "trajectory":
            steps = torch.full_like(steps, _WHOLE_TRAJECTORY)
        return rng.fold(torch.where(positions >= self.new_from, self.new_key, self.key), steps)

    def _masks(self, dropped):
        """Factors for a mask (..., length, X), true = dropped; 1 where dropout is off."""
        masks = (~dropped).float() / (1 - self.sampling.dropout_p)
        positions = torch.arange(dropped.shape[-2])
        if not self.sampling.dropout_prompt:
            masks[..., positions < self.prompt_length, :] = 1
        if not self.sampling.dropout_answer:
            masks[..., positions >= self.answer_from, :] = 1
        return masks


@contextmanager
def masked(model, masks, sampling, weight_masks=None):
    """Multiplies outputs at the dropout sites by ``masks(layer, site, length)``, (length, D).

    Embeddings are multiplied by ``masks(None, None, length)``, attention weights by
    ``weight_masks(layer, length)``, (heads, length, length). A LLaMA has no dropout modules: there
    only the outputs of the MLPs are multiplied, as in the release, and attention weights.
    """
    handles, implementation = [], model.config._attn_implementation
    if sampling.uses_dropout and sampling.dropout_attention:
        AttentionInterface.register("masked", partial(_masked_attention, weight_masks))
        model.set_attn_implementation("masked")
    for module, layer, site in _dropout_sites(model, sampling) if sampling.uses_dropout else []:

        def hook(_, __, out, layer=layer, site=site):
            return out * masks(layer, site, out.shape[1])

        handles.append(module.register_forward_hook(hook))
    yield
    for handle in handles:
        handle.remove()
    model.set_attn_implementation(implementation)


@contextmanager
def perturbed(reader):
    """Computes the linear maps of svp and weight_noise with the perturbed weights of ``reader``."""
    handles, sampling = [], reader.sampling
    for name in {"svp", "weight_noise"} & set(methods_of(sampling)):
        target = getattr(sampling, f"{name}_target")
        for layer, (module, weight, columns) in enumerate(_linear_maps(reader.model, target)):

            def hook(_, inputs, out, name=name, layer=layer, weight=weight, columns=columns):
                out = out.clone()
                out[0, :, columns] += reader.change(name, layer, inputs[0][0], weight)
                return out

            handles.append(module.register_forward_hook(hook))
    yield
    for handle in handles:
        handle.remove()


def _linear_maps(model, target):
    """(module, weight (I, O), its columns in the output) of a linear map, for each layer."""
    part, name = target.split("_")
    if isinstance(model, LlamaForCausalLM):
        for block in model.model.layers:
            module = getattr(block.self_attn if part == "attn" else block.mlp, f"{name}_proj")
            yield module, module.weight.T, slice(None)
        return
    for block in model.transformer.h:
        if name in "qkv":
            width = model.config.hidden_size
            columns = slice("qkv".index(name) * width, ("qkv".index(name) + 1) * width)
            yield block.attn.c_attn, block.attn.c_attn.weight[:, columns], columns
        else:
            modules = {"o": block.attn.c_proj, "up": block.mlp.c_fc, "down": block.mlp.c_proj}
            yield modules[name], modules[name].weight, slice(None)


def _masked_attention(masks, module, q, k, v, attention_mask, scaling, **kwargs):
    """Causal attention of (1, H, length, K), each of H' key-value heads for its query heads."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    length = q.shape[2]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    weights = (q @ k.mT * scaling).masked_fill(future, float("-inf")).softmax(-1)
    out = (weights * masks(module.layer_idx, length).to(weights)) @ v
    return out.transpose(1, 2), None


def _dropout_sites(model, sampling):
    """(module, layer, site) of every module at whose output sampling drops."""
    if isinstance(model, LlamaForCausalLM):
        return [(block.mlp, layer, MLP) for layer, block in enumerate(model.model.layers)]
    sites = [(model.transformer.drop, None, None)] if sampling.dropout_embedding else []
    for layer, block in enumerate(model.transformer.h):
        sites.append((block.attn.resid_dropout, layer, ATTENTION))
        sites.append((block.mlp.dropout, layer, MLP))
    return sites
