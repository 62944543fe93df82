"""Converts checkpoints of other code bases to the published layout.

Three kinds are known by the names of their weights:

codi: zhenyi4/codi. ``codi.base_model.model.*`` is a language model in peft's wrapper, with
``.base_layer`` in the names of adapted layers and their adapters beside them; ``prj.*`` is the
projector.
coconut: facebookresearch/coconut. ``base_causallm.*`` is a language model.
rm: the release's LatentRM, as a state dict. Its weights have the published names.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoTokenizer

from src.models import model_class
from src.models.latent_rm import LATENT_RMS
from src.models.tokenizers import END, LATENT, START, set_token_ids
from src.models.weight_files import read_weights
from utils.errors import UserError
from utils.files import atomic_folder

DEFAULT_BASES = {
    "gpt2": "openai-community/gpt2",
    "llama": "meta-llama/Llama-3.2-1B-Instruct",
}
_EMBEDDINGS = {"transformer.wte.weight": "gpt2", "model.embed_tokens.weight": "llama"}
_CODI, _COCONUT = "codi.base_model.model.", "base_causallm."
# The official projector is a Sequential whose layer norm was added by the name ``ln``.
_PROJECTOR = {"prj.1.": "projector.1.", "prj.3.": "projector.3.", "prj.ln.": "projector.4.",
              "prj.4.": "projector.4."}  # fmt: skip
# Buffers that older versions of transformers saved; and a part of CODI that was never used.
_IGNORED = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
_UNUSED = "dynamic_cls."
_DUPLICATE = "embedding.weight"  # COCONUT's second name of the token embeddings
_DOWN, _UP = ".lora_A.default.weight", ".lora_B.default.weight"
# Tokens at the end of the vocabulary. CODI's first one is padding; its row becomes <|latent|>,
# which no model reads or writes. A row of its own would be one more logit, which may win.
_NEW_TOKENS = {"codi": (LATENT, START, END), "coconut": (START, END, LATENT), "rm": ()}


@dataclass(frozen=True)
class Weights:
    """Weights in the published layout.

    tensors: {published name: tensor}. sources: {published name: its name in the source}. merged:
    how many adapters were merged.
    """

    kind: str
    tensors: dict
    sources: dict
    merged: int = 0

    @property
    def embedding(self):
        """The name of the token embeddings, or None."""
        return next((name for name in _EMBEDDINGS if name in self.tensors), None)

    def without(self, name):
        """These weights but one."""
        return replace(self, tensors={k: v for k, v in self.tensors.items() if k != name})


def convert(source, target, base=None, lora_alpha=32.0, generator_type=None):
    """Converts a checkpoint and returns a line that says what was done.

    source: a folder, a file or a hub id. target: a folder that is absent or empty. base: folder or
    hub id from which config and tokenizer come, None: see ``_default_base``. lora_alpha: an adapter
    of rank r counts lora_alpha / r. generator_type: for a LatentRM, the backbone that it was
    trained for. Raises UserError.
    """
    target = Path(target)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UserError(f"{target}: holds other files; name a new folder")
    weights = published_weights(source, read_weights(source), lora_alpha)
    if generator_type and weights.kind != "rm":
        raise UserError(f"--generator_type: {source} is no LatentRM; leave it out")
    architecture = _architecture(source, weights)
    base = base or _default_base(source, weights.kind, architecture)
    config, tokenizer = _read_base(base, architecture)
    _add_new_tokens(weights, tokenizer, base)
    weights = _untie(weights, config)
    _set_config(config, weights, generator_type)
    is_reward_model = weights.kind == "rm"
    cls = LATENT_RMS[architecture] if is_reward_model else model_class(weights.kind, architecture)
    with torch.device("meta"):
        model = cls(config)
    _check(source, base, weights, model)
    if not is_reward_model:
        set_token_ids(model, tokenizer)
        _set_prompt_prefix(config, tokenizer)
    config.architectures = [cls.__name__]
    _write(target, weights.tensors, model.config, tokenizer)
    count = sum(tensor.numel() for tensor in weights.tensors.values())
    merged = f", {weights.merged} adapters merged" if weights.kind == "codi" else ""
    return f"wrote {target}: {cls.__name__}, {count:,} parameters{merged}"


def published_weights(source, tensors, lora_alpha):
    """The Weights of a source, from its {name: tensor}. Raises UserError for an unknown kind."""
    names = _without_prefix({name: name for name in tensors}, "module.")
    if all(name.startswith("model.") for name in names) and "model.classifier.weight" in names:
        names = _without_prefix(names, "model.")
    tensors = {name: tensors[original] for name, original in names.items()}
    if any(name.startswith(_CODI) for name in names):
        return _of_codi(source, tensors, names, lora_alpha)
    if any(name.startswith(_COCONUT) for name in names):
        return _of_coconut(source, tensors, names)
    if "classifier.weight" in names:
        return _renamed("rm", tensors, names, {})
    raise UserError(
        f"{source}: holds {min(names)} and others, none of {_CODI}* (official CODI), {_COCONUT}* "
        "(Meta's COCONUT) and classifier.weight (a LatentRM): its layout is unknown"
    )


def _architecture(source, weights):
    """The name of the architecture, by that of the token embeddings."""
    if weights.embedding is None:
        raise UserError(f"{source}: has no token embeddings ({' or '.join(_EMBEDDINGS)})")
    return _EMBEDDINGS[weights.embedding]


def _without_prefix(names, prefix):
    """{name without prefix: value}, where all names have it."""
    while names and all(name.startswith(prefix) for name in names):
        names = {name.removeprefix(prefix): value for name, value in names.items()}
    return names


def _renamed(kind, tensors, names, prefixes):
    """The Weights after {old prefix: new prefix}. Names without any of them stay."""
    renamed, sources = {}, {}
    for name, tensor in tensors.items():
        if name.endswith(_IGNORED):
            continue
        old = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        new = prefixes.get(old, "") + name.removeprefix(old)
        renamed[new], sources[new] = tensor, names[name]
    return Weights(kind, renamed, sources)


def _of_coconut(source, tensors, names):
    language_model = {name: tensor for name, tensor in tensors.items() if name != _DUPLICATE}
    weights = _renamed("coconut", language_model, names, {_COCONUT: ""})
    _architecture(source, weights)  # there are embeddings
    embedding = weights.tensors[weights.embedding]
    if not torch.equal(tensors.get(_DUPLICATE, embedding), embedding):
        of_model = weights.sources[weights.embedding]
        raise UserError(f"{source}: {names[_DUPLICATE]} is not equal to {of_model}")
    return weights


def _of_codi(source, tensors, names, lora_alpha):
    used = {name: tensor for name, tensor in tensors.items() if not name.startswith(_UNUSED)}
    weights = _renamed("codi", used, names, {_CODI: "", **_PROJECTOR})
    transposed = _architecture(source, weights) == "gpt2"  # its layers are Conv1D
    merged, count = dict(weights.tensors), 0
    for down in [name for name in merged if name.endswith(_DOWN)]:
        layer = down.removesuffix(_DOWN)
        weight, up = layer + ".base_layer.weight", layer + _UP
        if weight not in merged or up not in merged:
            raise UserError(f"{source}: holds {weights.sources[down]} without its layer or lora_B")
        change = _change(merged.pop(down), merged.pop(up), lora_alpha)
        change = change.T if transposed else change
        if change.shape != merged[weight].shape:
            key = weights.sources[weight]
            raise UserError(f"{source}: the adapter of {key} has another shape than the layer")
        merged[weight] = merged[weight].float() + change
        count += 1
    published = {name: name.replace(".base_layer.", ".") for name in merged}
    tensors = {published[name]: tensor for name, tensor in merged.items()}
    sources = {published[name]: weights.sources[name] for name in merged}
    return Weights("codi", tensors, sources, count)


def _change(down, up, lora_alpha):
    """alpha / r B A, (out, in), from A (r, in) and B (out, r)."""
    return lora_alpha / down.shape[0] * (up.float() @ down.float())


def _default_base(source, kind, architecture):
    """A LatentRM's own folder; for a backbone the plain model that it was trained from."""
    if kind != "rm":
        return DEFAULT_BASES[architecture]
    path = Path(source)
    folder = path.parent if path.is_file() else path
    if path.exists() and not (folder / "config.json").is_file():
        mend = "give the folder of its generator as --base"
        raise UserError(f"{source}: no config.json there; {mend}")
    return str(folder)


def _read_base(base, architecture):
    """The config and the tokenizer of a folder or a hub id."""
    try:
        config, tokenizer = AutoConfig.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    except Exception as error:  # damaged files and the hub raise many kinds
        reason = " ".join(str(error).split())[:200]
        mend = "give a folder with its config.json and tokenizer"
        raise UserError(f"--base {base}: can't be read ({reason}); {mend}") from None
    if config.model_type != architecture:
        fault = f"is a {config.model_type}, the weights are those of a {architecture}"
        raise UserError(f"--base {base}: {fault}; give the model that it was trained from")
    return config, tokenizer


def _add_new_tokens(weights, tokenizer, base):
    """Adds the tokens of the last rows of the vocabulary. Raises UserError where they don't fit."""
    tokens, rows = _NEW_TOKENS[weights.kind], len(weights.tensors[weights.embedding])
    if not tokens:
        return
    before = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    ids = tokenizer.convert_tokens_to_ids(list(tokens))
    if ids != list(range(rows - len(tokens), rows)):
        fault = f"has {before} tokens, the checkpoint {rows}, the last {len(tokens)} of them new"
        raise UserError(f"--base {base}: {fault}; give the model that it was trained from")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = LATENT if weights.kind == "codi" else tokenizer.eos_token


def _untie(weights, config):
    """The weights without an output layer that equals the embeddings; says so in the config."""
    head, embedding = weights.tensors.get("lm_head.weight"), weights.tensors[weights.embedding]
    if head is None:
        return weights
    config.tie_word_embeddings = torch.equal(head, embedding)
    return weights.without("lm_head.weight") if config.tie_word_embeddings else weights


def _set_config(config, weights, generator_type):
    """What the config says of the vocabulary, the projector, the number format and the rest."""
    config.vocab_size = len(weights.tensors[weights.embedding])
    config.dtype = torch.float32
    inner = weights.tensors.get("projector.1.weight")
    if inner is not None:
        config.projector, config.projector_dropout = True, 0.0
        config.projector_hidden_size = len(inner)
    if generator_type:
        config.generator_type = generator_type


def _set_prompt_prefix(config, tokenizer):
    """Both code bases let the tokenizer put its first token, if it has one, before a question."""
    first = tokenizer("1")["input_ids"][0]
    if first == tokenizer.bos_token_id:
        config.prompt_prefix = tokenizer.bos_token


def _check(source, base, weights, model):
    """Raises UserError for a weight that the model lacks or misses, or of another shape."""
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        expected.pop("lm_head.weight", None)
    for name, tensor in weights.tensors.items():
        key = weights.sources[name]
        if name not in expected:
            raise UserError(f"{source}: unknown weight {key}")
        if tensor.shape != expected[name]:
            shapes = f"{tuple(tensor.shape)}, with the config of {base} {tuple(expected[name])}"
            mend = "give the model that it was trained from as --base"
            raise UserError(f"{source}: {key} has the shape {shapes}; {mend}")
    missing = expected.keys() - weights.tensors.keys()
    if missing:
        raise UserError(f"{source}: has no weight for {min(missing)}")


def _write(target, tensors, config, tokenizer):
    """Writes the folder: weights in float32, config, tokenizer."""
    with atomic_folder(target) as folder:
        whole = {name: tensor.float().contiguous() for name, tensor in tensors.items()}
        save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
