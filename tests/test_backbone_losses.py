"""CODI's and CoLaR's losses against uncached ones, row by row; LoRA; processes."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from src.models import BACKBONES
from src.models.loading import load_backbone
from src.models.tokenizers import build_tokenizer
from src.sampling import rng
from src.training.curriculum import Stage, batches
from src.training.losses.codi import CodiLoss
from src.training.losses.colar import ColarLoss, _draw
from tests.conftest import random_coconut, random_codi, random_colar
from tests.test_training import CONFIG, ROWS, train, write_recipe

RNG_KEYS = rng.row_keys(5, torch.arange(4), torch.zeros(4, dtype=torch.int64), "cpu")
LLAMA = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 48, "max_position_embeddings": 192, "tie_word_embeddings": True,
    "latent_intermediate_size": 24, "latent_embedding_std": 0.1,
}  # fmt: skip
OF = {
    "codi": {"config": CONFIG | {"projector": True, "projector_hidden_size": 24},
             "stages": [{"epochs": 1, "learning_rate": 1e-3},
                        {"epochs": 1, "learning_rate": 1e-3, "thoughts": 4, "hidden_steps": -1,
                         "dropout": 0.1}]},
    "colar": {"config": LLAMA, "loss": {"latent": 0.5},
              "stages": [{"speeds": [1, 2], "epochs": 2, "learning_rate": 1e-3, "dropout": 0.1}]},
}  # fmt: skip


def a_batch(module, tokenizer, stage):
    return next(batches(ROWS, tokenizer, module.format_row, stage, 4, "seed", "drop"))


def gradients_of(module, loss):
    module.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_same_gradients(gradients, plain):
    for name, gradient in plain.items():
        scale = gradient.abs().max().clamp(min=1e-3)
        assert (gradients[name] - gradient).abs().max() < 1e-3 * scale, name


def plain_codi(model, batch, thoughts, weights):
    """Teacher, student and distillation for one row at a time, every forward over all positions."""
    losses = {"teacher": [], "student": []}
    states = {"teacher": [], "student": []}
    embed = model.transformer.wte
    for row in range(len(batch.prompts)):
        number = int((batch.texts["number"][row] != -100).sum())
        for name in losses:
            text = batch.texts[name][row][batch.texts[name][row] != -100]
            x = embed(batch.prompts[row])
            for _ in range(thoughts if name == "student" else 0):
                hidden = model.transformer(inputs_embeds=x[None]).last_hidden_state[0, -1]
                x = torch.cat((x, model.projector(hidden)[None]))
            out = model.transformer(
                inputs_embeds=torch.cat((x, embed(text[:-1])))[None], output_hidden_states=True
            )
            logits = model.lm_head(out.last_hidden_state[0, -len(text) + 1 :])
            losses[name].append(F.cross_entropy(logits, text[1:], reduction="sum"))
            states[name].append([layer[0, -number] for layer in out.hidden_states[1:]])
    loss = sum(weights[name] * sum(losses[name]) / batch.num_targets[name] for name in losses)
    distances = []
    for layer in range(model.config.n_layer):
        teacher = torch.stack([layers[layer] for layers in states["teacher"]]).detach()
        student = torch.stack([layers[layer] for layers in states["student"]])
        distances.append(F.smooth_l1_loss(student, teacher) / teacher.std())
    return loss + weights["distill"] * sum(distances) / len(distances)


@pytest.mark.quick
@pytest.mark.parametrize("projector", [True, False])
def test_codi_loss_and_gradients_equal_the_uncached_ones(projector):
    model, tokenizer = random_codi(projector=projector, n_positions=128, n_layer=2)
    weights = {"teacher": 0.5, "student": 2.0, "distill": 3.0, "probe": 0.0}
    module = CodiLoss(model, weights, tokenizer.eos_token)
    stage = Stage(epochs=1, learning_rate=1e-3, thoughts=3, hidden_steps=-1)
    batch = a_batch(module, tokenizer, stage)
    loss, _ = module(batch, stage)
    expected = plain_codi(model, batch, 3, weights)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    assert_same_gradients(gradients_of(module, loss), gradients_of(module, expected))


@pytest.mark.quick
def test_codi_texts_end_with_the_answer_s_number():
    model, tokenizer = random_codi(n_positions=128)
    module = CodiLoss(model, CodiLoss.default_weights, tokenizer.eos_token)
    stage = Stage(epochs=1, learning_rate=1e-3, thoughts=2, hidden_steps=-1)
    batch = a_batch(module, tokenizer, stage)
    for name in ("teacher", "student"):
        for text, number in zip(batch.texts[name], batch.texts["number"], strict=True):
            text, number = text[text != -100].tolist(), number[number != -100].tolist()
            assert text[-len(number) :] == number
            assert tokenizer.decode(text[: -len(number)]).endswith("the answer is :")


@pytest.mark.quick
@pytest.mark.parametrize("speed", [1, 2, 3])
def test_colar_loss_and_gradients_equal_the_uncached_ones(speed):
    model, tokenizer = random_colar(max_position_embeddings=192)
    module = ColarLoss(model, {"token": 0.7, "latent": 1.3}, tokenizer).double()
    stage = Stage(epochs=1, learning_rate=1e-3, speeds=[speed])
    batch = a_batch(module, tokenizer, stage)
    assert f"thinking speed : {speed} )" in tokenizer.decode(batch.prompts[0])
    loss, _ = module(batch, stage, RNG_KEYS)
    drawn, embed = _draw(module._merge(batch)[0], RNG_KEYS), model.model.embed_tokens
    latents, tokens = [], []  # of all predictions of the batch
    for row in range(4):
        steps = batch.texts["steps"][row][batch.texts["steps"][row] != -100]
        text = batch.texts["text"][row][batch.texts["text"][row] != -100]
        merged = torch.stack([embed(part).sum(0) / len(part) ** 0.5 for part in steps.split(speed)])
        for k, part in enumerate(steps.split(speed)):
            assert drawn[row, k] in part
        x = torch.cat((embed(batch.prompts[row]), merged, embed(text[:-1])))[None]
        hidden = model.model(inputs_embeds=x).last_hidden_state[0, len(batch.prompts[row]) - 1 :]
        count = len(merged)
        features = model.lt_head.fc(hidden[: count + 1])
        keys = rng.fold(RNG_KEYS[row], torch.arange(count + 1))
        noise = rng.normal(keys, -16, merged.shape[1])
        thought = model.lt_head.mean(features) + module.log_std(features).exp() * noise
        target = torch.cat((merged, embed(text[:1]))).detach() / model.config.latent_embedding_std
        latents += (thought - target).pow(2).mean(-1)
        target = torch.cat((drawn[row, :count], text))
        tokens += F.cross_entropy(model.lm_head(hidden), target, reduction="none")
    expected = 1.3 * torch.stack(latents).mean() + 0.7 * torch.stack(tokens).mean()
    torch.testing.assert_close(loss, expected.to(loss), rtol=1e-4, atol=1e-4)
    assert_same_gradients(gradients_of(module, loss), gradients_of(module, expected))


@pytest.mark.quick
def test_a_token_of_a_group_is_drawn_uniformly():
    groups = torch.tensor([[[7, 8, 9], [5, -100, -100]]]).expand(3000, -1, -1)
    rng_keys = rng.row_keys(1, torch.arange(3000), torch.zeros(3000, dtype=torch.int64), "cpu")
    drawn = _draw(groups, rng_keys)
    assert (drawn[:, 1] == 5).all()
    shares = torch.stack([(drawn[:, 0] == token).float().mean() for token in (7, 8, 9)])
    assert (shares - 1 / 3).abs().max() < 0.05


@pytest.mark.parametrize("name", OF)
def test_two_processes_train_the_same_backbone_as_one(name, tmp_path):
    folders = []
    for processes in (1, 2):
        values = OF[name] | {"model_type": name, "problems_per_epoch": 300}
        recipe = write_recipe(tmp_path / f"{name}{processes}.yaml", **{"loss": {}} | values)
        done = train(recipe, processes=processes)
        assert done.returncode == 0, done.stderr
        folders.append(recipe.with_suffix(""))
    one, other = (load_file(folder / "model.safetensors") for folder in folders)
    distance = sum((one[name] - other[name]).pow(2).sum() for name in one).sqrt()
    assert distance < 2e-3 * sum(one[name].pow(2).sum() for name in one).sqrt()
    assert json.loads((folders[0] / "metrics.json").read_text())["valid_accuracy"] >= 0
    load_backbone(name, str(folders[0]))


GPT2_SHAPE = {key: value for key, value in CONFIG.items() if key != "initializer_range"}
LLAMA_SHAPE = {key: value for key, value in LLAMA.items() if not key.startswith("latent")}
BASES = {  # class, config class, shape; added config, LoRA's targets, what is trained whole
    "codi": (GPT2LMHeadModel, GPT2Config, GPT2_SHAPE,
             {"projector": True, "projector_hidden_size": 24}, ["c_attn", "mlp.c_proj"],
             "projector"),
    "colar": (LlamaForCausalLM, LlamaConfig, LLAMA_SHAPE,
              {"latent_intermediate_size": 24, "latent_embedding_std": 0.1},
              ["q_proj", "down_proj"], "lt_head"),
}  # fmt: skip


@pytest.mark.parametrize("name", BASES)
def test_training_starts_from_a_plain_base_in_bf16(name, tmp_path):
    """As in the papers' recipes: a plain language model, new parts, adapters; in float32."""
    pytest.importorskip("peft")
    model, config, shape, added, targets, part = BASES[name]
    tokenizer = build_tokenizer(BACKBONES[name])
    base = model(config(vocab_size=len(tokenizer), **shape)).to(torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    recipe = write_recipe(tmp_path / "x.yaml", **{"loss": {}} | OF[name] | {
        "model_type": name, "base": str(tmp_path / "base"), "config": added,
        "problems_per_epoch": 200, "lora": {"r": 4, "alpha": 8, "dropout": 0.1,
                                            "target_modules": targets, "also_train": [part]},
    })  # fmt: skip
    done = train(recipe)
    assert done.returncode == 0, done.stderr
    tensors = load_file(tmp_path / "x/model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert not any("lora" in key for key in tensors)
    load_backbone(name, str(tmp_path / "x"))


def test_lora_trains_its_targets_and_leaves_a_plain_checkpoint(tmp_path):
    pytest.importorskip("peft")
    base, tokenizer = random_coconut(n_positions=128)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    recipe = write_recipe(
        tmp_path / "x.yaml", model_type="coconut", base=str(tmp_path / "base"), config={},
        lora={"r": 4, "alpha": 8, "target_modules": ["mlp.c_proj"], "also_train": ["ln_f"]},
    )  # fmt: skip
    done = train(recipe)
    assert done.returncode == 0, done.stderr
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "x"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        name for name in before if name.endswith("mlp.c_proj.weight") or "ln_f" in name
    }
    load_backbone("coconut", str(tmp_path / "x"))
