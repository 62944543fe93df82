"""LatentRM: shared prompts, padding, prefixes, gradients, checkpoints."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from src.models.latent_rm import GPT2LatentRM
from src.models.loading import load_reward_model
from src.search.prefix_scorer import PrefixScorer
from src.training.reward_loss import bce, contrastive
from tests.conftest import RANDOM, random_coconut, random_reward_model, random_latent_rm
from utils.errors import UserError

Q, N, T = 3, 4, 5
EVERY = torch.ones(Q, N, T, dtype=torch.bool)
PROMPTS = [[20, 21, 22, 23, 24], [30, 31, 32], [40, 41, 42, 43]]


def padded(side="right", extra=0):
    """Prompts (Q, L) and their mask, padded on one side by ``extra`` more than it takes."""
    length = max(map(len, PROMPTS)) + extra
    ids, mask = torch.full((Q, length), 9), torch.zeros(Q, length, dtype=torch.int64)
    for row, prompt in enumerate(PROMPTS):
        where = slice(None, len(prompt)) if side == "right" else slice(length - len(prompt), None)
        ids[row, where], mask[row, where] = torch.tensor(prompt), 1
    return ids, mask


def thoughts():
    return torch.randn(Q, N, T, 32, generator=torch.Generator().manual_seed(0))


def plain_scores(model, embeds):
    """Every branch with a prompt of its own, by the Hugging Face model: (Q, N, T)."""
    rows = []
    for prompt, branches in zip(PROMPTS, embeds, strict=True):
        text = model.transformer.wte(torch.tensor(prompt)).expand(N, -1, -1)
        x = torch.cat((text, branches), dim=1)
        hidden = model.transformer(inputs_embeds=x).last_hidden_state[:, -T:]
        rows.append(model.classifier(hidden)[..., 0])
    return torch.stack(rows)


def test_scores_and_gradients_are_the_plain_way_s():
    labels = torch.rand(Q, N, T, generator=torch.Generator().manual_seed(1))
    found = {}
    for way in ("shared", "plain"):
        model = random_latent_rm()
        scores = (
            model(*padded(), thoughts()) if way == "shared" else plain_scores(model, thoughts())
        )
        contrastive(scores, labels, EVERY).mean().backward()
        found[way] = scores, {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(found["shared"][0], found["plain"][0], rtol=1e-4, atol=1e-4)
    assert found["shared"][1].keys() == found["plain"][1].keys()
    for name, gradient in found["shared"][1].items():
        scale = found["plain"][1][name].abs().max()
        assert (gradient - found["plain"][1][name]).abs().max() <= 1e-5 * max(1, scale), name


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("extra", [0, 6])
def test_padding_never_changes_a_score(side, extra):
    model = random_latent_rm()
    with torch.no_grad():
        plain = model(*padded(), thoughts())
        torch.testing.assert_close(
            model(*padded(side, extra), thoughts()), plain, rtol=1e-5, atol=1e-5
        )
        ids, mask = padded(side, extra)
        alone = model(ids[1:2], mask[1:2], thoughts()[1:2, 2:3])
    torch.testing.assert_close(alone[0, 0], plain[1, 2], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_prefix_scores_are_full_scores():
    model = random_latent_rm()
    full, scorer = model(*padded(), thoughts()), PrefixScorer(model, PROMPTS, T)
    for t in range(1, T + 1):
        torch.testing.assert_close(model(*padded(), thoughts()[:, :, :t]), full[..., :t])
    rows, parents = thoughts().flatten(0, 1), None
    for t in range(T):
        found = scorer.extend(rows[:, t], parents)
        torch.testing.assert_close(found.view(Q, N), full[..., t], rtol=1e-4, atol=1e-4)
        parents = torch.arange(Q * N)


@torch.no_grad()
def test_the_answer_s_reward_is_its_log_probability():
    """One row at a time, the whole text through the Hugging Face model; and padding moves nothing."""
    model = random_latent_rm()
    model.config.scores_answer, model.config.end_latent_token_id = True, 3
    lengths = [[1, 3, 2, 4], [2, 2, 1, 1], [4, 1, 3, 2]]
    answers = torch.full((Q, N, 6), -1)
    for q in range(Q):
        for n in range(N):
            answers[q, n, : lengths[q][n]] = torch.arange(lengths[q][n]) + 50 + n
    found = model(*padded("left", 2), thoughts(), answer_ids=answers)
    assert found.shape == (Q, N, T + 1)
    words = model.transformer.wte
    for q, prompt in enumerate(PROMPTS):
        for n in range(N):
            text = answers[q, n, : lengths[q][n]]
            parts = (
                words(torch.tensor(prompt)),
                thoughts()[q, n],
                words(torch.tensor([3, *text[:-1]])),
            )
            hidden = model.transformer(inputs_embeds=torch.cat(parts)[None]).last_hidden_state[0]
            rewards = model.classifier(hidden)[len(prompt) : len(prompt) + T, 0]
            logits = (hidden[-len(text) :] @ words.weight.T).log_softmax(-1)
            said = logits[torch.arange(len(text)), text].sum()
            plain = torch.cat((rewards, said[None]))
            torch.testing.assert_close(found[q, n], plain, rtol=1e-4, atol=1e-3)


def test_losses_by_hand():
    scores = torch.tensor([[[1.0, 0.0], [2.0, 3.0]]])  # (1, 2, 2)
    labels = torch.tensor([[[1.0, 0.25], [0.0, 0.5]]])
    first = -torch.log(torch.e ** torch.tensor(1.0) / (torch.e + torch.e**2))
    second = -0.25 * torch.log(1 / (1 + torch.e ** torch.tensor(3.0)))
    second = second - 0.5 * torch.log(torch.e ** torch.tensor(3.0) / (1 + torch.e**3))
    torch.testing.assert_close(
        contrastive(scores, labels, labels >= 0), ((first + second) / 2)[None]
    )
    plain = torch.nn.BCEWithLogitsLoss()(scores, labels)
    torch.testing.assert_close(bce(scores, labels, labels >= 0), plain[None])


def test_a_checkpoint_has_the_published_layout_and_comes_back(tmp_path):
    model, (backbone, tokenizer) = random_latent_rm(), random_coconut()
    model.save_pretrained(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert {n for n in names if not n.startswith("transformer.")} == {
        "classifier.weight", "classifier.bias"
    }  # fmt: skip
    loaded = load_reward_model(tmp_path, backbone, tokenizer)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


LENGTHS = torch.tensor([[5, 1, 3, 2], [2, 5, 1, 4], [1, 1, 2, 3]])  # of Q questions' trajectories


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("answers", [False, True])
def test_trajectories_of_different_lengths(name, answers):
    """Against one row at a time by the Hugging Face model, no padding; for each architecture."""
    backbone, _ = RANDOM[name]()
    model = random_reward_model(backbone)
    model.config.scores_answer = answers
    texts = [[[50, 51, 52], [53], [54, 55]], [[56], [57, 58], [59]], [[60], [61, 62], [63]]]
    ids = torch.full((Q, N, 3), -1)
    ids[:, 3, 0] = 64
    for q in range(Q):
        for n in range(3):
            ids[q, n, : len(texts[q][n])] = torch.tensor(texts[q][n])
    embeds = thoughts().to(model.dtype)
    for q in range(Q):
        for n in range(N):
            embeds[q, n, LENGTHS[q, n] :] = 9.0  # nobody may look there
    body, words = model.base_model, model.get_input_embeddings()
    with torch.no_grad():
        found = model(*padded("left", 2), embeds, LENGTHS, ids)
        for q, prompt in enumerate(PROMPTS):
            for n in range(N):
                count, text = int(LENGTHS[q, n]), ids[q, n][ids[q, n] >= 0].tolist()
                after = [model.config.end_latent_token_id, *text[:-1]] if answers else []
                parts = [words(torch.tensor(prompt)), embeds[q, n, :count]]
                parts += [words(torch.tensor(after))] if answers else []
                hidden = body(inputs_embeds=torch.cat(parts)[None]).last_hidden_state[0]
                own = hidden[len(prompt) : len(prompt) + count]
                rewards = model.classifier(model.projector(own))[:, 0]
                assert not found[q, n, count:T].any()
                torch.testing.assert_close(
                    found[q, n, :count], rewards.to(found), rtol=1e-3, atol=1e-3
                )
                if answers:
                    said = (hidden[-len(text) :] @ words.weight.T).log_softmax(-1)
                    said = said[torch.arange(len(text)), text].sum()
                    torch.testing.assert_close(found[q, n, T], said.to(found), rtol=1e-3, atol=1e-3)


def test_losses_look_at_the_thoughts_that_exist():
    there = torch.tensor([[[True, True], [True, False]]])  # the second trajectory has one thought
    scores = torch.tensor([[[1.0, 0.5], [2.0, 99.0]]])
    labels = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    first = -torch.log(torch.e ** torch.tensor(1.0) / (torch.e + torch.e**2))
    torch.testing.assert_close(contrastive(scores, labels, there), ((first + 0.0) / 2)[None])
    plain = torch.nn.BCEWithLogitsLoss()(scores[there], labels[there])
    torch.testing.assert_close(bce(scores, labels, there), plain[None])


@pytest.mark.parametrize("name", RANDOM)
def test_a_checkpoint_of_each_architecture_comes_back(tmp_path, name):
    backbone, tokenizer = RANDOM[name]()
    model = random_reward_model(backbone.float())
    model.save_pretrained(tmp_path)
    keys = set(load_file(tmp_path / "model.safetensors"))
    prefix = "model." if name == "colar" else "transformer."
    own = {key for key in keys if not key.startswith(prefix)}
    projector = {f"projector.{k}.{part}" for k in (1, 3, 4) for part in ("weight", "bias")}
    assert own == {"classifier.weight", "classifier.bias"} | (
        projector if name == "codi" else set()
    )
    loaded = load_reward_model(tmp_path, backbone, tokenizer)
    for key, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], weight), key


def _spoil(path, fault):
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
    ("fault", "said"),
    [
        ("cut", "can't be read"), ("no classifier", "classifier"), ("nan", "NaN"), ("bert", "bert"),
        ("width", "width 16"), ("vocabulary", "tokens"), ("none", "no such folder"),
    ],
)  # fmt: skip
def test_a_wrong_reward_model_is_one_clear_line(tmp_path, fault, said):
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
        _spoil(path, fault)
    with pytest.raises(UserError) as error:
        load_reward_model(path, backbone, tokenizer)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert "--prm_id" in str(error.value)
