"""LatentRM: shared prompts, padding, prefix scores, losses, gradients, checkpoints."""

import json
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GPT2Config, LlamaConfig

from benchmarks.models import SHAPES
from src.models import kv_cache, latent_rm
from src.models.latent_rm import LATENT_RMS, GPT2LatentRM
from src.models.loading import load_reward_model
from src.sampling.memory import Budget, logits_within
from src.search.prefix_scorer import PrefixScorer
from src.training.losses.latent_rm import RewardLoss, bce, contrastive
from tests.conftest import (
    LLAMAS,
    PROMPTS,
    RANDOM,
    raises_user_error,
    random_coconut,
    random_latent_rm,
    random_reward_model,
)

pytestmark = pytest.mark.quick

Q, N, T = 3, 4, 5
ALL_THOUGHTS = torch.ones(Q, N, T, dtype=torch.bool)


def padded(side="right", extra=0):
    """Prompts (Q, L) and their mask, padded on one side by ``extra`` more than needed."""
    length = max(map(len, PROMPTS)) + extra
    ids, mask = torch.full((Q, length), 9), torch.zeros(Q, length, dtype=torch.int64)
    for row, prompt in enumerate(PROMPTS):
        start = 0 if side == "right" else length - len(prompt)
        ids[row, start : start + len(prompt)] = torch.tensor(prompt)
        mask[row, start : start + len(prompt)] = 1
    return ids, mask


def padded_answers(answers, extra=0):
    """Answers, Q lists of N lists of ids, as a tensor (Q, N, A), padded with -1."""
    length = extra + max(len(ids) for of_question in answers for ids in of_question)
    return torch.tensor(
        [[ids + [-1] * (length - len(ids)) for ids in of_question] for of_question in answers]
    )


def random_thoughts():
    return torch.randn(Q, N, T, 32, generator=torch.Generator().manual_seed(0))


def plain_scores(model, thoughts):
    """Rewards (Q, N, T) by the Hugging Face model, every trajectory with a prompt of its own."""
    rows = []
    for prompt, trajectories in zip(PROMPTS, thoughts, strict=True):
        text = model.transformer.wte(torch.tensor(prompt)).expand(N, -1, -1)
        x = torch.cat((text, trajectories), dim=1)
        hidden = model.transformer(inputs_embeds=x).last_hidden_state[:, -T:]
        rows.append(model.classifier(hidden)[..., 0])
    return torch.stack(rows)


@torch.no_grad()
def plain_rewards(model, prompt, thoughts, answer):
    """Rewards of one trajectory, by the Hugging Face model unpadded: those (T,) of its thoughts,
    log p(answer), and that of the answer's last token."""
    words, count = model.get_input_embeddings(), len(answer)
    written = [model.config.end_latent_token_id, *answer]
    parts = (words(torch.tensor(prompt)), thoughts, words(torch.tensor(written)))
    hidden = model.base_model(inputs_embeds=torch.cat(parts)[None]).last_hidden_state[0]
    rewards = model.classifier(model.projector(hidden[len(prompt) :]))[:, 0]
    log_probs = (hidden[-count - 1 : -1] @ words.weight.T).log_softmax(-1)
    log_prob = log_probs[torch.arange(count), torch.tensor(answer)].sum()
    return rewards[: len(thoughts)], log_prob, rewards[-1]


def scores_and_gradients(compute_scores):
    labels = torch.rand(Q, N, T, generator=torch.Generator().manual_seed(1))
    model = random_latent_rm()
    scores = compute_scores(model)
    contrastive(scores, labels, ALL_THOUGHTS).mean().backward()
    gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    return scores, gradients


def test_sharing_prompts_changes_neither_scores_nor_gradients():
    scores, gradients = scores_and_gradients(lambda model: model(*padded(), random_thoughts()))
    plain, plain_gradients = scores_and_gradients(
        lambda model: plain_scores(model, random_thoughts())
    )
    torch.testing.assert_close(scores, plain, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == plain_gradients.keys()
    for name, gradient in gradients.items():
        largest = plain_gradients[name].abs().max()
        assert (gradient - plain_gradients[name]).abs().max() <= 1e-5 * max(1, largest), name


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("extra", [0, 6])
def test_padding_never_changes_a_score(side, extra):
    model, thoughts = random_latent_rm(), random_thoughts()
    with torch.no_grad():
        plain = model(*padded(), thoughts)
        ids, mask = padded(side, extra)
        torch.testing.assert_close(model(ids, mask, thoughts), plain, rtol=1e-5, atol=1e-5)
        alone = model(ids[1:2], mask[1:2], thoughts[1:2, 2:3])
    torch.testing.assert_close(alone[0, 0], plain[1, 2], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_prefix_scores_equal_full_scores():
    model, thoughts = random_latent_rm(), random_thoughts()
    full, scorer = model(*padded(), thoughts), PrefixScorer(model, PROMPTS, T)
    for t in range(1, T + 1):
        torch.testing.assert_close(model(*padded(), thoughts[:, :, :t]), full[..., :t])
    rows, parents = thoughts.flatten(0, 1), None
    for t in range(T):
        rewards = scorer.extend(rows[:, t], parents)
        torch.testing.assert_close(rewards.view(Q, N), full[..., t], rtol=1e-4, atol=1e-4)
        parents = torch.arange(Q * N)


@torch.no_grad()
def test_the_answer_s_reward_is_its_log_probability():
    """Against one row at a time, unpadded."""
    model, thoughts = random_latent_rm(), random_thoughts()
    model.config.scores_answer, model.config.end_latent_token_id = True, 3
    lengths = [[1, 3, 2, 4], [2, 2, 1, 1], [4, 1, 3, 2]]
    answers = [[list(range(50 + n, 50 + n + lengths[q][n])) for n in range(N)] for q in range(Q)]
    scores = model(*padded("left", 2), thoughts, answer_ids=padded_answers(answers, 2))
    assert scores.shape == (Q, N, T + 1)
    for q, prompt in enumerate(PROMPTS):
        for n in range(N):
            rewards, log_prob, _ = plain_rewards(model, prompt, thoughts[q, n], answers[q][n])
            plain = torch.cat((rewards, log_prob[None]))
            torch.testing.assert_close(scores[q, n], plain, rtol=1e-4, atol=1e-3)


NUM_THOUGHTS = torch.tensor([[5, 1, 3, 2], [2, 5, 1, 4], [1, 1, 2, 3]])  # (Q, N)
ANSWERS = [
    [[50, 51, 52], [53], [54, 55], [64]],
    [[56], [57, 58], [59], [64]],
    [[60], [61, 62], [63], [64]],
]


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("key", ["scores_answer", "reads_answer", None])
def test_trajectories_of_different_lengths_score_as_alone(name, key):
    """Against one row at a time, unpadded, for each architecture."""
    backbone, _ = RANDOM[name]()
    model = random_reward_model(backbone)
    model.config.update({key: True} if key else {})
    thoughts = random_thoughts().to(model.dtype)
    missing = torch.arange(T) >= NUM_THOUGHTS[..., None]
    thoughts[missing] = 9.0  # no score may depend on it
    with torch.no_grad():
        scores = model(*padded("left", 2), thoughts, NUM_THOUGHTS, padded_answers(ANSWERS, 1))
    assert scores.shape[2] == T + (key is not None)
    for q, prompt in enumerate(PROMPTS):
        for n in range(N):
            count = int(NUM_THOUGHTS[q, n])
            inputs = (prompt, thoughts[q, n, :count], ANSWERS[q][n])
            rewards, *of_answer = plain_rewards(model, *inputs)
            assert_close(scores[q, n, :count], rewards)
            assert not scores[q, n, count:T].any()
            if key:
                assert_close(scores[q, n, T], of_answer[key == "reads_answer"])


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected.to(actual), rtol=1e-3, atol=1e-3)


def rewards_and_gradients(model, recompute):
    """Of thoughts and answers; and how often the first block's attention ran."""
    model.recomputes_blocks, model.config.scores_answer = recompute, True
    model.zero_grad()
    calls, thoughts = [], random_thoughts().to(model.dtype)
    output, _ = model.residual_outputs(model.blocks[0])
    handle = output.register_forward_hook(lambda *_: calls.append(1))
    pool = (*padded("left", 2), thoughts, NUM_THOUGHTS, padded_answers(ANSWERS))
    rewards = model(*(x.to(model.device) for x in pool))
    rewards.sin().sum().backward()
    handle.remove()
    gradients = {name: weight.grad.clone().cpu() for name, weight in model.named_parameters()}
    return rewards.cpu(), gradients, len(calls)


@pytest.mark.parametrize("name", ["codi", "colar"])
def test_recomputed_blocks_give_the_same_gradients(name):
    model = random_reward_model(RANDOM[name]()[0])
    rewards, gradients, calls = rewards_and_gradients(model, recompute=False)
    again, others, more_calls = rewards_and_gradients(model, recompute=True)
    assert more_calls == 2 * calls > 0
    torch.testing.assert_close(again, rewards, rtol=0, atol=0)
    for key, gradient in gradients.items():
        off = (others[key] - gradient).abs().max()
        assert off <= 1e-6 * gradient.abs().max(), key


def kept_numbers(model, recompute):
    """How many numbers a forward pass keeps for the backward pass.

    Without weights, and without the inputs of blocks that are recomputed.
    """
    model.recomputes_blocks, kept = recompute, {}
    weights = {weight.data_ptr() for weight in model.parameters()}

    def note(x):
        if x.data_ptr() not in weights:
            kept[x.data_ptr()] = max(x.numel(), kept.get(x.data_ptr(), 0))
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        rewards = model(*padded(), random_thoughts())
    rewards.sum().backward()  # what is kept has lived until here
    return sum(kept.values())


def test_recomputed_blocks_are_not_kept():
    model = random_latent_rm(n_layer=6)
    assert kept_numbers(model, recompute=True) < 0.1 * kept_numbers(model, recompute=False)


def test_gradients_of_a_block_are_complete_before_those_of_the_next():
    """Else the gradients of prompts and of thoughts would be held at once for all blocks."""
    model, order = random_latent_rm(n_layer=3), []
    first, second, _ = (model.residual_outputs(block)[0] for block in model.blocks)
    second.weight.register_post_accumulate_grad_hook(lambda _: order.append("second"))
    first.register_full_backward_hook(lambda *_: order.append("first"))
    model(*padded(), random_thoughts()).sum().backward()
    assert order == ["second", "first", "first"]


def test_nothing_is_recomputed_without_gradients():
    model = random_latent_rm()
    model.recomputes_blocks = True
    with mock.patch("src.models.decoder.checkpoint", side_effect=AssertionError), torch.no_grad():
        model(*padded(), random_thoughts())


class OneDevice(TorchDispatchMode):
    """Fails where an operation reads tensors of two devices, as CUDA would."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [
            x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.dim()
        ]
        assert len({x.device for x in tensors}) <= 1, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", ["tiny-gpt2", "tiny-llama"])
def test_masks_and_positions_are_on_the_model_s_device(shape, monkeypatch):
    """The model is on "meta", which has shapes only; values that the host reads are replaced."""
    config = SHAPES[shape]()
    config.end_latent_token_id = 3
    with torch.device("meta"):
        model = LATENT_RMS[config.model_type](config)
        ids, answers = (torch.zeros(size, dtype=torch.int64) for size in ((Q, 7), (Q, N, 2)))
        bias, thoughts = torch.zeros(Q, 1, 1, 7), torch.zeros(Q, N, T, 32)
    model.budget = Budget(1 << 30)
    monkeypatch.setattr(latent_rm, "_pad_right", lambda ids, mask: (ids, mask.sum(1)))
    cache = kv_cache.PrefixCache
    monkeypatch.setattr(cache, "of", lambda lengths, layers: cache(lengths, layers, bias))
    with OneDevice():
        _, states = model.read_states(ids, ids, thoughts, answer_ids=answers)
        _, ends = model.read_answers(ids, ids, thoughts, None, answers)
        (model.answer_log_probs(states, answers).sum() + ends.sum()).backward()
        with torch.no_grad():
            model.read_states(ids, ids, thoughts, answer_ids=answers)


class LargestLogits(TorchDispatchMode):
    """Notes the largest number of rows of a product that is as wide as the vocabulary."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary, self.rows = vocabulary, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mm.default and result.shape[1] == self.vocabulary:
            self.rows = max(self.rows, len(result))
        return result


@pytest.mark.parametrize("training", [False, True])
def test_logits_of_answers_are_computed_in_chunks(training):
    model, answers = random_latent_rm(), padded_answers(ANSWERS)
    model.config.end_latent_token_id, model.config.scores_answer = 3, True
    loss = RewardLoss(model, {"contrastive": 1.0}, answer_weight=1.0).train(training)
    batch = {
        "latent_embeds": random_thoughts(), "latent_lengths": NUM_THOUGHTS, "answer_ids": answers,
        "labels": torch.rand(Q, N, T), "gold_ids": answers[:, 0],
    } | dict.fromkeys(("digits", "corrects", "predictions"))  # fmt: skip
    ids, mask = padded()
    with torch.no_grad():
        whole = loss(ids, mask, **batch)
        model.budget = Budget(1 << 18)
        with LargestLogits(model.config.vocab_size) as largest:
            torch.testing.assert_close(loss(ids, mask, **batch), whole)
    assert 0 < largest.rows <= logits_within(model) < answers.numel()


@pytest.mark.parametrize("name", ["coconut", "codi", "colar"])
@pytest.mark.parametrize("autocast", [False, True])
@torch.no_grad()
def test_the_reward_head_computes_in_float32(name, autocast):
    model = random_reward_model(RANDOM[name]()[0].float())
    if not autocast:
        model.bfloat16()
    pool = (*padded("left", 2), random_thoughts(), NUM_THOUGHTS)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        rewards, (hidden, _) = model(*pool), model.read_states(*pool)
    assert rewards.dtype == torch.float32
    head = torch.nn.Sequential(model.projector, model.classifier).float()
    plain = head(hidden.float())[..., 0] * (torch.arange(T) < NUM_THOUGHTS[..., None])
    torch.testing.assert_close(rewards, plain, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_best_of_n_in_bfloat16_chooses_what_float32_scores_about_as_high():
    model = random_latent_rm()
    thoughts = torch.randn(Q, 64, T, 32, generator=torch.Generator().manual_seed(2))
    scores = model(*padded(), thoughts).sum(-1)  # (Q, N)
    rounded = model.bfloat16()(*padded(), thoughts).sum(-1)
    off = (rounded - scores).abs().max()
    assert off < 0.1 * scores.std()
    chosen = scores.gather(1, rounded.argmax(1, keepdim=True))[:, 0]
    assert (scores.amax(1) - chosen <= 2 * off).all()


@pytest.mark.parametrize("config", [GPT2Config(n_embd=64, n_head=4), LlamaConfig(hidden_size=64)])
@torch.no_grad()
def test_norms_of_bfloat16_round_once(config):
    config.num_hidden_layers, config.vocab_size, config.intermediate_size = 1, 9, 64
    model = LATENT_RMS[config.model_type](config).bfloat16()
    torch.manual_seed(0)
    for weight in model.base_model.parameters():
        weight.uniform_(0.5, 2)
    x = torch.randn(64, 64).bfloat16()
    exact, rounded = model.float().final_norm(x.float()), model.bfloat16().final_norm(x)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=2**-8, atol=1e-6)
    module = model.float().base_model.get_submodule("ln_f" if hasattr(config, "n_embd") else "norm")
    torch.testing.assert_close(exact, module(x.float()), rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["codi", "colar"])
@pytest.mark.parametrize("recompute", [False, True])
def test_rewards_and_gradients_on_cuda_equal_those_on_the_cpu(name, recompute):
    model = random_reward_model(RANDOM[name]()[0]).double()
    rewards, gradients, _ = rewards_and_gradients(model, recompute)
    on_cuda, others, _ = rewards_and_gradients(model.cuda(), recompute)
    torch.testing.assert_close(on_cuda, rewards, rtol=1e-4, atol=1e-4)
    for key, gradient in gradients.items():
        off = (others[key] - gradient).abs().max()
        assert off <= 1e-4 * gradient.abs().max(), key


def test_losses_by_hand():
    scores = torch.tensor([[[1.0, 0.0], [2.0, 3.0]]])  # (1, 2, 2)
    labels = torch.tensor([[[1.0, 0.25], [0.0, 0.5]]])
    e = torch.e
    first = -torch.log(torch.tensor(e / (e + e**2)))
    second = -0.25 * torch.log(torch.tensor(1 / (1 + e**3)))
    second = second - 0.5 * torch.log(torch.tensor(e**3 / (1 + e**3)))
    exists = labels >= 0
    torch.testing.assert_close(contrastive(scores, labels, exists), ((first + second) / 2)[None])
    plain = torch.nn.BCEWithLogitsLoss()(scores, labels)
    torch.testing.assert_close(bce(scores, labels, exists), plain[None])


def test_losses_ignore_missing_thoughts():
    exists = torch.tensor([[[True, True], [True, False]]])  # the second trajectory has one thought
    scores = torch.tensor([[[1.0, 0.5], [2.0, 99.0]]])
    labels = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    first = -torch.log(torch.tensor(torch.e / (torch.e + torch.e**2)))
    torch.testing.assert_close(contrastive(scores, labels, exists), ((first + 0.0) / 2)[None])
    plain = torch.nn.BCEWithLogitsLoss()(scores[exists], labels[exists])
    torch.testing.assert_close(bce(scores, labels, exists), plain[None])


def test_a_checkpoint_has_the_published_layout_and_loads_unchanged(tmp_path):
    model, (backbone, tokenizer) = random_latent_rm(), random_coconut()
    model.config.reads_answer = True
    model.save_pretrained(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    heads = {name for name in names if not name.startswith("transformer.")}
    assert heads == {"classifier.weight", "classifier.bias"}
    loaded = load_reward_model(tmp_path, backbone, tokenizer)
    assert loaded.reads_answer and loaded.rewards_answer and not loaded.scores_answer
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


@pytest.mark.parametrize("name", RANDOM)
def test_a_checkpoint_of_each_architecture_has_its_layout_and_loads_unchanged(tmp_path, name):
    backbone, tokenizer = RANDOM[name]()
    model = random_reward_model(backbone.float())
    model.save_pretrained(tmp_path)
    keys = set(load_file(tmp_path / "model.safetensors"))
    body = "model." if name in LLAMAS else "transformer."
    heads = {key for key in keys if not key.startswith(body)}
    expected = {"classifier.weight", "classifier.bias"}
    if name in ("codi", "codi llama"):
        expected |= {f"projector.{k}.{part}" for k in (1, 3, 4) for part in ("weight", "bias")}
    assert heads == expected
    loaded = load_reward_model(tmp_path, backbone, tokenizer)
    for key, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], weight), key


def _damage(path, fault):
    weights = path / "model.safetensors"
    if fault == "cut":
        weights.write_bytes(weights.read_bytes()[:5000])
    if fault == "no classifier":
        save_file({k: v for k, v in load_file(weights).items() if "classifier" not in k}, weights)
    if fault == "nan":
        tensors = load_file(weights)
        tensors["classifier.weight"][0, 0] = float("nan")
        save_file(tensors, weights)
    if fault == "bert":
        (path / "config.json").write_text(json.dumps({"model_type": "bert"}))


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        ("cut", "can't be read"),
        ("no classifier", "classifier"),
        ("nan", "NaN"),
        ("bert", "bert"),
        ("width", "width 16"),
        ("vocabulary", "tokens"),
        ("none", "no such folder"),
    ],
)
def test_a_wrong_reward_model_is_a_one_line_error(tmp_path, fault, part):
    backbone, tokenizer = random_coconut()
    model = GPT2LatentRM(random_latent_rm().config)
    if fault == "width":
        model = random_latent_rm(n_embd=16)
    if fault == "vocabulary":
        model.config.vocab_size = 100
        model = GPT2LatentRM(model.config)
    path = tmp_path / "rm"
    if fault != "none":
        model.save_pretrained(path)
        _damage(path, fault)
    with raises_user_error(part, "--prm_id"):
        load_reward_model(path, backbone, tokenizer)
