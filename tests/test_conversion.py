"""Checkpoints of other code bases compute the same after their conversion."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from src.models.conversion import convert
from src.models.loading import load_backbone, load_reward_model
from src.models.tokenizers import END, LATENT, START, build_tokenizer
from src.sampling.engine import sample
from src.sampling.trajectories import Request
from tests.conftest import raises_user_error, random_codi, random_reward_model, save_checkpoint

pytestmark = pytest.mark.quick

QUESTIONS = ["How many?", "A shirt costs 9 dollars."]
RANK, T = 4, 3
LAYERS = {  # that have adapters
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"),
}


def plain_tokenizer():
    """Without tokens of latent reasoning."""
    no_texts = {"format_prompt": lambda question: "", "format_answer": lambda answer: ""}
    return build_tokenizer(SimpleNamespace(special_tokens={}, **no_texts))


def base_of(architecture, folder):
    """A plain model with three more tokens than its tokenizer, which is saved in ``folder``.

    The LLaMA's tokenizer puts a first token before a text, as that of Llama 3.2 does.
    """
    torch.manual_seed(0)
    tokenizer = plain_tokenizer()
    tokenizer.pad_token = None
    size = {"vocab_size": len(tokenizer), "initializer_range": 0.2}
    if architecture == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=96, **size))
    else:
        first = ("<|endoftext|>", tokenizer.eos_token_id)
        processor = TemplateProcessing(single=f"{first[0]} $A", special_tokens=[first])
        tokenizer.backend_tokenizer.post_processor = processor
        tokenizer.bos_token = first[0]
        config = LlamaConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=48, max_position_embeddings=96, tie_word_embeddings=True, **size,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    save_checkpoint(folder, model, tokenizer)
    model.resize_token_embeddings(len(tokenizer) + 3, mean_resizing=False)
    return model.eval()


def adapt(model, names, scale):
    """Adds adapters to the layers by hooks: y = W x + scale B A x. Returns {layer: (A, B)}."""
    adapters = {}
    for layer, module in model.named_modules():
        if not layer.endswith(names):
            continue
        rows, columns = module.weight.shape
        if model.config.model_type == "gpt2":  # Conv1D
            rows, columns = columns, rows
        a, b = 0.3 * torch.randn(RANK, columns), 0.3 * torch.randn(rows, RANK)
        adapters[layer] = a, b

        def hook(_, inputs, output, a=a, b=b):
            return output + scale * inputs[0] @ a.T @ b.T

        module.register_forward_hook(hook)
    return adapters


def official_codi(model, adapters, projector):
    """The state dict of the official code."""
    state = {}
    for name, tensor in model.state_dict().items():
        layer, _, part = name.rpartition(".")
        name = f"{layer}.base_layer.{part}" if layer in adapters else name
        state[f"codi.base_model.model.{name}"] = tensor
    for layer, pair in adapters.items():
        for letter, tensor in zip("AB", pair, strict=True):
            state[f"codi.base_model.model.{layer}.lora_{letter}.default.weight"] = tensor
    state |= {f"prj.{name}": tensor for name, tensor in projector.state_dict().items()}
    return state | {"dynamic_cls.0.weight": torch.ones(2, 2)}


def official_projector():
    projector = nn.Sequential(nn.Dropout(0.0), nn.Linear(32, 24), nn.GELU(), nn.Linear(24, 32))
    projector.add_module("ln", nn.LayerNorm(32))
    return projector


@torch.no_grad()
def assert_computes_the_same(kind, folder, model, to_thought, prompts):
    """Thoughts and greedy answers of the converted model, against a plain loop over ``model``."""
    converted, tokenizer = load_backbone(kind, str(folder))
    assert converted.encode(tokenizer, QUESTIONS) == prompts
    sampled = sample(converted, Request(prompts, [0, 1], 1, T, 5))
    embed, end = model.get_input_embeddings(), converted.config.end_latent_token_id
    for q, prompt in enumerate(prompts):
        x = embed(torch.tensor(prompt))
        for t in range(T):
            hidden = model.base_model(inputs_embeds=x[None]).last_hidden_state[0, -1]
            thought = to_thought(hidden)
            torch.testing.assert_close(sampled.thoughts[q, 0, t], thought, rtol=1e-3, atol=1e-3)
            x = torch.cat((x, thought[None]))
        answer, token = [], end
        for _ in range(5):
            x = torch.cat((x, embed(torch.tensor([token]))))
            token = int(model(inputs_embeds=x[None]).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            answer.append(token)
        assert sampled.tokens[q][0] == answer


def prompts_of(folder, before, ids):
    """What the other code base reads: the tokenizer's ids of each question, and new ids."""
    tokenizer = plain_tokenizer()
    first = [tokenizer.eos_token_id] if folder.name == "llama" else []
    plain = tokenizer([question + before for question in QUESTIONS])["input_ids"]
    return [[*first, *question, *ids] for question in plain]


@pytest.mark.parametrize("architecture", LAYERS)
def test_official_codi_computes_the_same(architecture, tmp_path):
    base = tmp_path / architecture
    model, projector = base_of(architecture, base), official_projector()
    vocab = model.config.vocab_size
    adapters = adapt(model, LAYERS[architecture], scale=32 / RANK)
    (tmp_path / "official").mkdir()
    state = official_codi(model, adapters, projector)
    torch.save(state, tmp_path / "official/pytorch_model.bin")
    torch.save({}, tmp_path / "official/training_args.bin")
    line = convert(str(tmp_path / "official"), tmp_path / "new", base=str(base))
    assert f"{len(adapters)} adapters merged" in line
    prompts = prompts_of(base, "", [vocab - 2])
    assert_computes_the_same("codi", tmp_path / "new", model, projector, prompts)
    _, tokenizer = load_backbone("codi", str(tmp_path / "new"))
    tokens = [LATENT, START, END]
    assert tokenizer.convert_tokens_to_ids(tokens) == list(range(vocab - 3, vocab))
    assert tokenizer.pad_token_id == vocab - 3


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("architecture", LAYERS)
def test_meta_s_coconut_computes_the_same(architecture, prefix, tmp_path):
    base = tmp_path / architecture
    model = base_of(architecture, base)
    vocab = model.config.vocab_size
    state = {f"base_causallm.{name}": tensor for name, tensor in model.state_dict().items()}
    state["embedding.weight"] = model.get_input_embeddings().weight.data
    state = {prefix + name: tensor for name, tensor in state.items()}
    torch.save(state, tmp_path / "checkpoint_3")
    convert(str(tmp_path / "checkpoint_3"), tmp_path / "new", base=str(base))
    prompts = prompts_of(base, "\n", [vocab - 3])
    same = nn.Identity()
    assert_computes_the_same("coconut", tmp_path / "new", model, same, prompts)


@pytest.mark.parametrize("prefix", ["", "model.", "module."])
def test_a_latent_rm_scores_the_same(prefix, tmp_path):
    backbone, tokenizer = random_codi()
    model = random_reward_model(backbone)
    source = save_checkpoint(tmp_path / "source", model, tokenizer)
    (source / "model.safetensors").unlink()
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save(state, source / "pytorch_model.bin")
    convert(str(source), tmp_path / "new", generator_type="codi")
    converted = load_reward_model(str(tmp_path / "new"), backbone, tokenizer)
    assert converted.config.generator_type == "codi"
    ids, thoughts = torch.tensor([[5, 6, 7]]), torch.randn(1, 2, T, 32)
    with torch.no_grad():
        scores = [m(ids, torch.ones_like(ids), thoughts) for m in (model, converted)]
    torch.testing.assert_close(*scores)


@pytest.fixture
def official(tmp_path):
    """A base, and the state dict of a CODI that was trained from it."""
    model = base_of("gpt2", tmp_path / "gpt2")
    adapters = adapt(model, LAYERS["gpt2"], scale=32 / RANK)
    return tmp_path / "gpt2", official_codi(model, adapters, official_projector())


def drop(state, part):
    del state[next(name for name in state if part in name)]


FAULTS = {
    "unknown weight codi.base_model.model.transformer.h.0.gate": lambda state: state.__setitem__(
        "codi.base_model.model.transformer.h.0.gate", torch.ones(1)
    ),
    "without its layer or lora_B": lambda state: drop(state, "lora_B"),
    "unknown weight codi.base_model.model.transformer.h.0.attn.c_attn.lora_B": lambda state: drop(
        state, "c_attn.lora_A"
    ),
    "no weight for transformer.h.0.ln_1.bias": lambda state: drop(state, "h.0.ln_1.bias"),
    "no weight for projector.4.bias": lambda state: drop(state, "prj.ln.bias"),
    "has no token embeddings": lambda state: drop(state, "wte"),
    "c_attn.base_layer.weight has another shape": lambda state: state.__setitem__(
        "codi.base_model.model.transformer.h.0.attn.c_attn.lora_B.default.weight", torch.ones(7, 4)
    ),
    "transformer.wpe.weight has the shape": lambda state: state.__setitem__(
        "codi.base_model.model.transformer.wpe.weight", torch.ones(7, 32)
    ),
    "its layout is unknown": lambda state: [
        drop(state, "codi.") for name in [*state] if "codi." in name
    ],
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_weight_that_does_not_fit_is_named(message, official, tmp_path):
    base, state = official
    FAULTS[message](state)
    state = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    save_file(state, tmp_path / "model.safetensors")
    with raises_user_error(tmp_path / "model.safetensors", message):
        convert(str(tmp_path / "model.safetensors"), tmp_path / "new", base=str(base))
    assert not (tmp_path / "new").exists()


def test_a_base_of_another_vocabulary_or_architecture_is_refused(official, tmp_path):
    base, state = official
    torch.save(state, tmp_path / "x.pt")
    base_of("llama", tmp_path / "llama")
    with raises_user_error("--base", "is a llama, the weights are those of a gpt2"):
        convert(str(tmp_path / "x.pt"), tmp_path / "new", base=str(tmp_path / "llama"))
    convert(str(tmp_path / "x.pt"), tmp_path / "new", base=str(base))
    tokenizer = plain_tokenizer()
    tokenizer.add_tokens(["one", "more", "words"])
    tokenizer.save_pretrained(base)
    with raises_user_error("--base", "the last 3 of them new"):
        convert(str(tmp_path / "x.pt"), tmp_path / "other", base=str(base))


def test_an_embedding_that_is_no_duplicate_is_refused(tmp_path):
    model = base_of("gpt2", tmp_path / "gpt2")
    state = {f"base_causallm.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save(state | {"embedding.weight": torch.ones(3, 32)}, tmp_path / "x.pt")
    with raises_user_error("embedding.weight is not equal to base_causallm.transformer.wte"):
        convert(str(tmp_path / "x.pt"), tmp_path / "new", base=str(tmp_path / "gpt2"))


def test_files_that_hold_no_weights_are_refused(tmp_path):
    for name, content in {"object": torch.nn.Linear(2, 2), "list": [1], "nested": {"a": 1}}.items():
        torch.save(content, tmp_path / f"{name}.pt")
        with raises_user_error(f"{name}.pt"):
            convert(str(tmp_path / f"{name}.pt"), tmp_path / "new")
    with raises_user_error("holds list.pt, nested.pt, object.pt; give the path of one"):
        convert(str(tmp_path), tmp_path / "new")
    (tmp_path / "empty").mkdir()
    with raises_user_error("no weights there"):
        convert(str(tmp_path / "empty"), tmp_path / "new")


def test_weights_are_written_in_float32_and_tied(official, tmp_path):
    base, state = official
    half = {name: tensor.bfloat16() for name, tensor in state.items()}
    torch.save(half, tmp_path / "x.bin")
    convert(str(tmp_path / "x.bin"), tmp_path / "new", base=str(base))
    weights = load_file(tmp_path / "new/model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert "lm_head.weight" not in weights
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpt2", "new", "x.bin"]
