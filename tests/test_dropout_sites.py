"""Dropout of attention weights and embeddings: the masks, training, what a LLaMA lacks.

tests/test_engine.py and tests/test_rollouts.py compare sampling under it with the reference.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from src.models.attention import attend_in_prompt
from src.sampling import rng
from src.sampling.engine import sample
from src.sampling.memory import tokens_within
from src.sampling.samplers import NO_HOOK, PROMPT, SUFFIX, Sampling, dropout_hook
from src.sampling.trajectories import Request, pad_right
from src.training.losses.coconut import CoconutLoss
from tests.conftest import random_coconut, random_colar
from tests.reference import _Reader, key_of, masked, thought_of

pytestmark = pytest.mark.quick

MODELS = {"GPT-2": random_coconut, "LLaMA": random_colar}
PROMPTS, TEXTS, SEED = [[20, 21, 22, 23, 24], [30, 31], [40, 41, 42, 43]], 6, 5
EVERYWHERE = Sampling("dropout", 0.2, dropout_embedding=True, dropout_attention=True)


def sampling_for(model):
    return replace(EVERYWHERE, dropout_embedding=model.has_embedding_dropout)


def hook_of(sampling, rows=4, steps=8):
    keys = rng.row_keys(SEED, torch.arange(rows), torch.zeros(rows, dtype=torch.int64), "cpu")
    return dropout_hook(sampling, keys, torch.arange(steps).expand(rows, -1))


def masks_of(hook, layer=0, part=PROMPT, keys=64, steps=8):
    weights = torch.ones(4, 6, steps, keys)  # (R, H, S, T)
    return hook.drop_weights(layer, weights, part)


def test_attention_weights_are_dropped_at_rate_p_and_scaled():
    dropped = masks_of(hook_of(EVERYWHERE))
    share = (dropped == 0).double().mean()
    assert abs(share - 0.2) < 5 * (0.16 / dropped.numel()) ** 0.5
    assert set(dropped.unique().tolist()) == {0.0, 1.25}


def test_masks_differ_by_head_query_row_layer_and_part():
    hook = hook_of(EVERYWHERE)
    masks = torch.cat(
        [masks_of(hook, layer, part) for layer in (0, 1) for part in (PROMPT, SUFFIX)]
    )
    flat = masks.flatten(0, 2)
    assert len(flat.unique(dim=0)) == len(flat)
    one_mask = hook_of(replace(EVERYWHERE, dropout_mask="trajectory"))
    masks = masks_of(one_mask)
    assert torch.equal(masks, masks[:, :, :1].expand_as(masks))


def test_a_mask_does_not_depend_on_the_number_of_keys():
    hook, weights = hook_of(EVERYWHERE), torch.ones(4, 6, 8, 5)
    assert torch.equal(hook.drop_weights(0, weights, PROMPT), masks_of(hook)[..., :5])


def test_without_the_flag_or_at_rate_0_nothing_is_dropped():
    assert hook_of(replace(EVERYWHERE, dropout_attention=False)).attention(0) is None
    assert hook_of(replace(EVERYWHERE, dropout_p=0.0)) is NO_HOOK


@pytest.mark.parametrize("heads", [6, 2])
def test_attention_written_out_is_the_fused_one(heads):
    torch.manual_seed(0)
    q = torch.randn(3, 7, 6, 8, requires_grad=True)
    k, v = torch.randn(2, 3, heads, 7, 8).unbind()
    fused = attend_in_prompt(q, k, v)
    plain = attend_in_prompt(q, k, v, lambda weights, part: weights)
    torch.testing.assert_close(plain, fused)


def test_prompts_are_read_in_smaller_chunks_where_attention_weights_are_in_memory():
    model = random_coconut()[0]
    assert tokens_within(model, keys=90) < tokens_within(model) / 2


def read(model, tokenizer, sampling):
    """Thoughts (B, T, D) and states (B, S, D) as training reads them, in one padded batch."""
    prompts, lengths = pad_right(PROMPTS, 0)
    text = torch.arange(50, 50 + 3 * (TEXTS + 1)).view(3, -1)
    batch = SimpleNamespace(prompts=prompts, prompt_lengths=lengths, texts={"text": text})
    keys = rng.row_keys(SEED, torch.arange(3), torch.zeros(3, dtype=torch.int64), "cpu")
    module = CoconutLoss(model, CoconutLoss.default_settings, tokenizer)
    thoughts, hidden = module.read(batch, "text", 4, sampling, keys)
    return torch.stack(thoughts, dim=1), hidden, text


def plain_read(model, sampling, q, text):
    """The same for one prompt: no cache, every forward over all positions."""
    key, prompt = key_of(SEED, q, 0), torch.tensor(PROMPTS[q])
    reader = _Reader(model, replace(sampling, dropout_answer=True), key, key, len(prompt))
    x = model.get_input_embeddings()(prompt)
    for _ in range(4):
        x = torch.cat((x, thought_of(model, reader.read(x))[None]))
    thoughts, x = x[len(prompt) :], torch.cat((x, model.get_input_embeddings()(text[:-1])))
    with masked(model, reader.masks, sampling, reader.weight_masks):
        hidden = model.base_model(inputs_embeds=x[None]).last_hidden_state[0]
    return thoughts, hidden[-TEXTS:]


def gradients_of(model, *outputs):
    model.zero_grad()
    torch.manual_seed(0)
    sum((x * torch.randn_like(x)).sum() for x in outputs).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_training_equals_plain_reading_under_the_same_masks_and_so_do_its_gradients(name):
    model, tokenizer = MODELS[name]()
    sampling = sampling_for(model)
    thoughts, hidden, text = read(model, tokenizer, sampling)
    gradients = gradients_of(model, thoughts, hidden)
    rows = [plain_read(model, sampling, q, text[q]) for q in range(len(PROMPTS))]
    plain = [torch.stack(part) for part in zip(*rows, strict=True)]
    torch.testing.assert_close(thoughts, plain[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(hidden, plain[1], rtol=1e-4, atol=1e-4)
    expected = gradients_of(model, *plain)
    assert gradients.keys() == expected.keys()
    for key, gradient in expected.items():
        scale = gradient.abs().max().clamp(min=1e-3)
        assert (gradients[key] - gradient).abs().max() < 1e-3 * scale, key


@pytest.mark.parametrize("name", MODELS)
def test_training_thinks_what_sampling_thinks(name):
    """Under the masks of sample 0, as long as the model does not stop."""
    model, tokenizer = MODELS[name]()
    sampling = replace(sampling_for(model), dropout_answer=True)
    thoughts = read(model, tokenizer, sampling)[0]
    sampled = sample(model, Request(PROMPTS, range(3), 1, 4, 1, SEED, sampling))
    length = int(sampled.num_thoughts.min())
    torch.testing.assert_close(
        thoughts[:, :length], sampled.thoughts[:, 0, :length], rtol=1e-4, atol=1e-4
    )


def test_a_llama_refuses_dropout_after_the_embedding():
    model, _ = random_colar()
    with pytest.raises(ValueError, match="a LLaMA has no dropout after the embedding"):
        sample(model, Request(PROMPTS, range(3), 1, 4, 1, SEED, EVERYWHERE))
