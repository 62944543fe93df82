"""The losses against plain transcriptions of their formulas, row by row; LoRA; processes."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from src.models import BACKBONES, model_class
from src.models.loading import load_backbone
from src.models.tokenizers import build_tokenizer, set_token_ids
from src.sampling import rng
from src.training.curriculum import Stage, batches, result_digits
from src.training.losses import BACKBONE_LOSSES, coconut
from src.training.losses.coconut import CoconutLoss
from src.training.losses.codi import CodiLoss
from src.training.losses.colar import ColarLoss, _draw
from tests.conftest import RANDOM, random_coconut, random_codi, random_colar
from tests.test_training import CONFIG, ROWS, train, write_recipe

RNG_KEYS = rng.row_keys(5, torch.arange(4), torch.zeros(4, dtype=torch.int64), "cpu")
LLAMA = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 48, "max_position_embeddings": 192, "tie_word_embeddings": True,
    "latent_intermediate_size": 24, "latent_embedding_std": 0.1,
}  # fmt: skip
OF = {
    "codi": {"problems_per_epoch": 100,
             "config": CONFIG | {"projector": True, "projector_hidden_size": 24},
             "stages": [{"epochs": 1, "learning_rate": 1e-3},
                        {"epochs": 1, "learning_rate": 1e-3, "thoughts": 4, "hidden_steps": -1,
                         "dropout": 0.1}]},
    "colar": {"problems_per_epoch": 200, "config": LLAMA, "loss": {"latent": 0.5},
              "stages": [{"speeds": [1, 2], "epochs": 1, "learning_rate": 1e-3, "dropout": 0.1}]},
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


def ids_of(tokenizer, text):
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.int64)


def think(model, ids, count):
    """Embeddings of a prompt and of thoughts (L + T, D): no cache, a whole forward a thought."""
    x = model.get_input_embeddings()(ids)
    for _ in range(count):
        hidden = model.base_model(inputs_embeds=x[None]).last_hidden_state[0, -1]
        x = torch.cat((x, model.to_thought(hidden)[None]))
    return x


def summed_cross_entropy(model, hidden, first, targets):
    """Over all targets; the first one is predicted by the state at position ``first``."""
    logits = model.lm_head(hidden[first : first + len(targets)])
    return F.cross_entropy(logits, targets, reduction="sum")


def mean_probe_loss(module, rows, thoughts):
    """thoughts: (T, D) of each row."""
    seconds = [states[1::2] for states in thoughts]
    digits = [result_digits(row, len(seconds[0])) for row in rows]
    logits = module.probe(torch.stack(seconds)).view(-1, 11)  # 10 digits, and none
    return F.cross_entropy(logits, torch.tensor(digits).flatten())


def plain_coconut(module, tokenizer, rows, thoughts, hidden_steps):
    """Terms of COCONUT's loss for one row at a time, from the official code's sequence."""
    model, sums, count, states = module.model, 0.0, 0, []
    for row in rows:
        steps = row["steps"][hidden_steps:] if hidden_steps >= 0 else []
        text = [ids_of(tokenizer, step + "\n") for step in steps]
        text = torch.cat([*text, ids_of(tokenizer, f"### {row['answer']}<|endoftext|>")])
        prompt = ids_of(tokenizer, row["question"] + "\n<|start-latent|>")
        x = think(model, prompt, thoughts)
        states.append(x[len(prompt) :])
        end = len(x)
        tail = torch.cat((ids_of(tokenizer, "<|end-latent|>"), text[:-1]))
        x = torch.cat((x, model.get_input_embeddings()(tail)))
        hidden = model.base_model(inputs_embeds=x[None]).last_hidden_state[0]
        sums += summed_cross_entropy(model, hidden, end, text)
        count += len(text)
    return {
        "text": sums / count,
        "probe": mean_probe_loss(module, rows, states),
        "contrastive": plain_contrast(torch.cat(states)),
    }


def plain_contrast(thoughts):
    """The mean over all pairs of thoughts (T, D)."""
    pairs = torch.combinations(torch.arange(len(thoughts)))
    cosines = F.cosine_similarity(*thoughts[pairs.T])
    return torch.relu(cosines).mean()


def plain_codi(module, tokenizer, rows, thoughts, hidden_steps):
    """Terms of CODI's loss for one row at a time, from the official code's sequences."""
    model, embed = module.model, module.model.get_input_embeddings()
    sums, counts = {"teacher": 0.0, "student": 0.0}, {"teacher": 0, "student": 0}
    at_colon, states = {"teacher": [], "student": []}, []
    last = None if module.settings["teacher_last_step"] else -1
    for row in rows:
        question, colon = ids_of(tokenizer, row["question"]), ids_of(tokenizer, "The answer is:")
        number = ids_of(tokenizer, f" {row['answer']}<|endoftext|>")
        explicit = row["steps"][hidden_steps:] if hidden_steps >= 0 else []
        prompt = torch.cat((question, ids_of(tokenizer, "<|start-latent|>")))
        thinking = think(model, prompt, thoughts)
        states.append(thinking[len(prompt) :])
        end = embed(ids_of(tokenizer, "<|end-latent|>"))
        parts = {
            "teacher": (embed(question), ids_of(tokenizer, " ".join(row["steps"][:last]))),
            "student": (torch.cat((thinking, end)), ids_of(tokenizer, " ".join(explicit))),
        }
        for name, (x, steps) in parts.items():
            text = torch.cat((steps, colon, number))
            out = model.base_model(
                inputs_embeds=torch.cat((x, embed(text[:-1])))[None], output_hidden_states=True
            )
            hidden, first = out.last_hidden_state[0], len(x) - 1
            sums[name] += summed_cross_entropy(model, hidden, first, text)
            counts[name] += len(text)
            place = first + len(steps) + len(colon)
            at_colon[name].append(torch.stack([layer[0, place] for layer in out.hidden_states]))
    teacher, student = (torch.stack(at_colon[name]) for name in ("teacher", "student"))
    assert teacher.shape[1] == model.config.num_hidden_layers + 1
    distances = [
        F.smooth_l1_loss(student[:, i], teacher[:, i].detach()) / teacher[:, i].detach().std()
        for i in range(teacher.shape[1])
    ]
    return {name: sums[name] / counts[name] for name in sums} | {
        "distill": sum(distances) / len(distances),
        "probe": mean_probe_loss(module, rows, states),
    }


def one_batch(module, tokenizer, stage, rows=ROWS[:4]):
    """Problems of 2, 1, 3 and 4 steps, whose prompts have different lengths."""
    (batch,) = batches(rows, tokenizer, module.format_row, stage, len(rows), "seed", "all")
    return batch


def latent_stage(thoughts, hidden_steps, **values):
    return Stage(
        epochs=1, learning_rate=1e-3, thoughts=thoughts, hidden_steps=hidden_steps, **values
    )


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "thoughts", "hidden_steps"),
    [("coconut", 4, 2), ("coconut", 6, -1), ("coconut llama", 4, -1)],
)
def test_coconut_loss_is_that_of_the_official_sequence_term_by_term(name, thoughts, hidden_steps):
    model, tokenizer = RANDOM[name](max_position_embeddings=128)
    stage = latent_stage(thoughts, hidden_steps)
    module = CoconutLoss(model, {"probe": 0.7, "contrastive": 0.3}, tokenizer).double()
    loss, _ = module(one_batch(module, tokenizer, stage), stage)
    terms = plain_coconut(module, tokenizer, ROWS[:4], thoughts, hidden_steps)
    expected = terms["text"] + 0.7 * terms["probe"] + 0.3 * terms["contrastive"]
    torch.testing.assert_close(loss, expected.to(loss), rtol=1e-4, atol=1e-4)
    assert_same_gradients(gradients_of(module, loss), gradients_of(module, expected))


WEIGHTS = {"teacher": 0.5, "student": 2.0, "distill": 3.0, "probe": 0.7}


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "hidden_steps", "last_step"),
    [("codi", -1, False), ("codi without projector", 2, True), ("codi llama", -1, False)],
)
def test_codi_loss_is_that_of_the_official_sequences_term_by_term(name, hidden_steps, last_step):
    model, tokenizer = RANDOM[name](max_position_embeddings=128)
    module = CodiLoss(model, WEIGHTS | {"teacher_last_step": last_step}, tokenizer).double()
    stage = latent_stage(4, hidden_steps)
    batch = one_batch(module, tokenizer, stage)
    terms = plain_codi(module, tokenizer, ROWS[:4], 4, hidden_steps)
    for name, term in terms.items():
        module.settings = dict.fromkeys(WEIGHTS, 0.0) | {name: 1.0}
        loss, _ = module(batch, stage, RNG_KEYS)
        torch.testing.assert_close(loss, term.to(loss), rtol=1e-4, atol=1e-4)
    module.settings = WEIGHTS
    loss, expected = module(batch, stage, RNG_KEYS)[0], sum(WEIGHTS[x] * terms[x] for x in terms)
    torch.testing.assert_close(loss, expected.to(loss), rtol=1e-4, atol=1e-4)
    assert_same_gradients(gradients_of(module, loss), gradients_of(module, expected))


@pytest.mark.quick
def test_without_thoughts_codi_s_teacher_learns_alone():
    model, tokenizer = random_codi(n_positions=128, n_layer=2)
    module = CodiLoss(model, CodiLoss.default_settings, tokenizer)
    stage = latent_stage(0, 0)
    batch = one_batch(module, tokenizer, stage)
    loss, _ = module(batch, stage, RNG_KEYS)
    expected = plain_codi(module, tokenizer, ROWS[:4], 2, -1)["teacher"]
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    missing = {name for name, p in module.named_parameters() if p.requires_grad} - set(
        gradients_of(module, loss)
    )
    assert not missing  # data-parallel training waits for each gradient
    assert module.solved(batch, stage).shape == (4,)


@pytest.mark.quick
def test_codi_s_passes_have_dropout_masks_of_their_own(monkeypatch):
    model, tokenizer = random_codi(n_positions=128, n_layer=2)
    module = CodiLoss(model, CodiLoss.default_settings, tokenizer, model_dropout=0.1)
    stage, found, plain_hook = latent_stage(2, -1), [], coconut.dropout_hook

    def hook(sampling, rng_keys, steps):
        assert sampling.dropout_attention and sampling.dropout_embedding
        found.append(tuple(rng_keys.tolist()))
        return plain_hook(sampling, rng_keys, steps)

    monkeypatch.setattr(coconut, "dropout_hook", hook)
    module(one_batch(module, tokenizer, stage), stage, RNG_KEYS)
    passes = set(found)  # teacher, student, target
    assert len(passes) == 3
    assert len({key for keys in passes for key in keys}) == 3 * len(RNG_KEYS)


@pytest.mark.quick
def test_with_dropout_the_shards_of_a_batch_give_the_loss_of_the_whole():
    """Except the distillation's, whose standard deviation is that of a pass's rows."""
    model, tokenizer = random_codi(n_positions=128, n_layer=2)
    settings = CodiLoss.default_settings | {"distill": 0.0}
    module, stage = CodiLoss(model, settings, tokenizer, 0.1), latent_stage(2, -1)
    batch = one_batch(module, tokenizer, stage)
    whole = module(batch, stage, RNG_KEYS)[0]
    parts = [module(batch.shard(i, 2), stage, RNG_KEYS[i::2])[0] for i in range(2)]
    torch.testing.assert_close(sum(parts) / 2, whole, rtol=1e-4, atol=1e-4)
    module.model_dropout = 0.0
    assert (module(batch, stage, RNG_KEYS)[0] - whole).abs() > 1e-2


@pytest.mark.quick
def test_codi_s_texts_and_rows_are_those_of_the_official_code():
    model, tokenizer = random_codi()
    module, stage = CodiLoss(model, CodiLoss.default_settings, tokenizer), latent_stage(6, -1)
    row = {"question": "How many?", "steps": ["<<1+1=2>>", "<<2*3=6>>", "<<6*2=12>>"]}
    row["answer"] = "12"
    prompt, texts = module.format_row(row, stage)
    assert prompt == "How many?<|start-latent|>"
    assert texts["teacher"] == "<<1+1=2>> <<2*3=6>>The answer is: 12<|endoftext|>"
    assert texts["student"] == "<|end-latent|>The answer is: 12<|endoftext|>"
    assert texts["number"] == " 12<|endoftext|>"
    one_step = module.format_row(row | {"steps": row["steps"][:1]}, stage)[1]
    assert one_step["teacher"] == "The answer is: 12<|endoftext|>"
    accepted = [module.accepts({"answer": answer}) for answer in ("12", "-12", ".5", "", "0.5")]
    assert accepted == [True, False, False, False, True]


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
def test_colar_on_gpt2_trains_with_gpt2_s_own_dropout():
    tokenizer = build_tokenizer(BACKBONES["colar"])
    config = GPT2Config(vocab_size=len(tokenizer), latent_intermediate_size=24,
                        latent_embedding_std=0.1, **GPT2_SHAPE)  # fmt: skip
    model = set_token_ids(model_class("colar", "gpt2")(config), tokenizer)
    stage = Stage(epochs=1, learning_rate=1e-3, speeds=[2])
    losses = []
    for p in (0.0, 0.1, 0.1):
        module = ColarLoss(model, ColarLoss.default_settings, tokenizer, p)
        module.log_std = torch.nn.Linear(24, 32)
        torch.nn.init.zeros_(module.log_std.weight)
        torch.nn.init.zeros_(module.log_std.bias)
        loss, _ = module(one_batch(module, tokenizer, stage), stage, RNG_KEYS)
        losses.append(float(loss.detach()))
    assert losses[0] != losses[1] == losses[2]


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
        values = OF[name] | {"model_type": name}
        values |= {"per_device_train_batch_size": 2}  # the passes have the same rows, too
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
    tokenizer = build_tokenizer(type("Plain", (BACKBONES[name],), {"special_tokens": {}}))
    base = model(config(vocab_size=len(tokenizer), **shape)).to(torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    recipe = write_recipe(tmp_path / "x.yaml", **{"loss": {}} | OF[name] | {
        "model_type": name, "base": str(tmp_path / "base"), "config": added,
        "lora": {"r": 4, "alpha": 8, "dropout": 0.1, "target_modules": targets,
                 "also_train": [part]},
    })  # fmt: skip
    done = train(recipe)
    assert done.returncode == 0, done.stderr
    tensors = load_file(tmp_path / "x/model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert not any("lora" in key for key in tensors)
    # embeddings are frozen, with those of new tokens added
    key = next(key for key in tensors if key.endswith(("wte.weight", "embed_tokens.weight")))
    before = base.get_input_embeddings().weight.float()
    assert len(tensors[key]) > len(before)
    assert torch.equal(tensors[key][: len(before)], before)
    load_backbone(name, str(tmp_path / "x"))


def test_lora_trains_its_targets_and_leaves_a_plain_checkpoint(tmp_path):
    pytest.importorskip("peft")
    base, tokenizer = random_coconut(n_positions=128)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    recipe = write_recipe(
        tmp_path / "x.yaml", model_type="coconut", base=str(tmp_path / "base"), config={},
        lora={"r": 4, "alpha": 8, "target_modules": ["mlp.c_proj"], "also_train": ["ln_f"]},
        problems_per_epoch=100,
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


@pytest.mark.quick
@pytest.mark.parametrize("prefix", ["", "<|endoftext|>"])
@pytest.mark.parametrize("random", [random_coconut, random_codi])
def test_training_reads_the_prompts_of_inference(random, prefix):
    model, tokenizer = random()
    model.config.prompt_prefix = prefix
    loss = BACKBONE_LOSSES["coconut" if random is random_coconut else "codi"]
    module = loss(model, loss.default_settings, tokenizer)
    stage = Stage(epochs=1, learning_rate=1e-3, thoughts=2, hidden_steps=-1)
    prompt, _ = module.format_row(ROWS[0], stage)
    (ids,) = model.encode(tokenizer, [ROWS[0]["question"]])
    assert tokenizer(prompt, add_special_tokens=False)["input_ids"] == ids
    assert (ids[0] == tokenizer.eos_token_id) == bool(prefix)
