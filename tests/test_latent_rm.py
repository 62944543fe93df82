"""LatentRM: shared prompts, padding, prefix scores, losses, gradients, checkpoints."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from src.models.latent_rm import GPT2LatentRM
from src.models.loading import load_reward_model
from src.search.prefix_scorer import PrefixScorer
from src.training.losses.latent_rm import bce, contrastive
from tests.conftest import (
    LLAMAS,
    RANDOM,
    raises_user_error,
    random_coconut,
    random_latent_rm,
    random_reward_model,
)

pytestmark = pytest.mark.quick

Q, N, T = 3, 4, 5
ALL_THOUGHTS = torch.ones(Q, N, T, dtype=torch.bool)
PROMPTS = [[20, 21, 22, 23, 24], [30, 31, 32], [40, 41, 42, 43]]


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
    """Rewards (T,) of one trajectory and log p(answer), by the Hugging Face model unpadded."""
    words = model.get_input_embeddings()
    written = [model.config.end_latent_token_id, *answer[:-1]]
    parts = (words(torch.tensor(prompt)), thoughts, words(torch.tensor(written)))
    hidden = model.base_model(inputs_embeds=torch.cat(parts)[None]).last_hidden_state[0]
    at_thoughts = hidden[len(prompt) : len(prompt) + len(thoughts)]
    rewards = model.classifier(model.projector(at_thoughts))[:, 0]
    log_probs = (hidden[-len(answer) :] @ words.weight.T).log_softmax(-1)
    return rewards, log_probs[torch.arange(len(answer)), torch.tensor(answer)].sum()


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
            rewards, log_prob = plain_rewards(model, prompt, thoughts[q, n], answers[q][n])
            plain = torch.cat((rewards, log_prob[None]))
            torch.testing.assert_close(scores[q, n], plain, rtol=1e-4, atol=1e-3)


NUM_THOUGHTS = torch.tensor([[5, 1, 3, 2], [2, 5, 1, 4], [1, 1, 2, 3]])  # (Q, N)
ANSWERS = [
    [[50, 51, 52], [53], [54, 55], [64]],
    [[56], [57, 58], [59], [64]],
    [[60], [61, 62], [63], [64]],
]


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("scores_answer", [False, True])
def test_trajectories_of_different_lengths_score_as_alone(name, scores_answer):
    """Against one row at a time, unpadded, for each architecture."""
    backbone, _ = RANDOM[name]()
    model = random_reward_model(backbone)
    model.config.scores_answer = scores_answer
    thoughts = random_thoughts().to(model.dtype)
    missing = torch.arange(T) >= NUM_THOUGHTS[..., None]
    thoughts[missing] = 9.0  # no score may depend on it
    with torch.no_grad():
        scores = model(*padded("left", 2), thoughts, NUM_THOUGHTS, padded_answers(ANSWERS))
    assert scores.shape[2] == T + scores_answer
    for q, prompt in enumerate(PROMPTS):
        for n in range(N):
            count = int(NUM_THOUGHTS[q, n])
            rewards, log_prob = plain_rewards(model, prompt, thoughts[q, n, :count], ANSWERS[q][n])
            assert_close(scores[q, n, :count], rewards)
            assert not scores[q, n, count:T].any()
            if scores_answer:
                assert_close(scores[q, n, T], log_prob)


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected.to(actual), rtol=1e-3, atol=1e-3)


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
    model.save_pretrained(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    heads = {name for name in names if not name.startswith("transformer.")}
    assert heads == {"classifier.weight", "classifier.bias"}
    loaded = load_reward_model(tmp_path, backbone, tokenizer)
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
