"""Special tokens of latent reasoning, unknown words, and the tokenizer of the bundled models.

A backbone's ``special_tokens`` are {key in the config: token}. The ids come from the tokenizer.
"""

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from utils.errors import UserError
from utils.tiny_problems import all_words

START, END, LATENT = "<|start-latent|>", "<|end-latent|>", "<|latent|>"
TOKENS = {
    "start_latent_token_id": START,
    "end_latent_token_id": END,
    "latent_token_id": LATENT,
}
UNKNOWN_SHARE = 0.1  # share of a file's questions that may hold words unknown to the tokenizer
EOS = "<|endoftext|>"
_CONTINUES = "@@"  # prefix of a digit that continues a number: 18 is the tokens 1 and @@8


def missing_tokens(tokenizer, special_tokens):
    """The special tokens that the tokenizer lacks."""
    vocabulary = tokenizer.get_vocab()
    return [token for token in special_tokens.values() if token not in vocabulary]


def set_token_ids(model, tokenizer):
    """Sets the ids in a backbone's config; published configs lack them or hold -100 or -1."""
    for key, token in model.special_tokens.items():
        setattr(model.config, key, tokenizer.convert_tokens_to_ids(token))
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


def add_tokens(model, tokenizer, copy_of=None):
    """Adds the missing special tokens to a plain checkpoint's tokenizer and embeddings.

    copy_of: the token whose embedding the new ones start from; None leaves that to transformers.
    Raises UserError when there is no such token.
    """
    missing = missing_tokens(tokenizer, model.special_tokens)
    if copy_of is not None and (not missing or copy_of not in tokenizer.get_vocab()):
        fault = f"the tokenizer has no token {copy_of}" if missing else "no token is new"
        raise UserError(f"initialize_tokens_from: {fault}; leave it out")
    if missing:
        tokenizer.add_special_tokens({"additional_special_tokens": missing})
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if len(tokenizer) > model.config.vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    if copy_of is not None:
        _copy_rows(model, *(tokenizer.convert_tokens_to_ids(x) for x in (copy_of, missing)))
    return set_token_ids(model, tokenizer)


@torch.no_grad()
def _copy_rows(model, source, targets):
    """Input and output embeddings of the ids ``targets`` become those of ``source``."""
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        layer.weight[targets] = layer.weight[source].clone()


def rows_with_unknown(model, tokenizer, rows):
    """Indices of the rows whose question holds a word unknown to the tokenizer."""
    prompts = model.encode(tokenizer, [row["question"] for row in rows])
    return [i for i, ids in enumerate(prompts) if tokenizer.unk_token_id in ids]


def unknown_word(tokenizer, text):
    """The first part of a text unknown to the tokenizer, or None; for fast tokenizers only."""
    if not tokenizer.is_fast:
        return None
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return next((text[i:j] for token, (i, j) in pairs if token == tokenizer.unk_token_id), None)


def build_tokenizer(backbone):
    """The word-level tokenizer of the bundled models: a token a word, a sign or a digit.

    It knows the words of the tiny benchmark, those of the backbone's own texts, digits and step
    signs. Texts are lower-cased; unknown words become ``<unk>``. Special tokens have the published
    names.
    """
    special = list(backbone.special_tokens.values())
    digits = [str(d) for d in range(10)]
    signs = "<< >> + - * / = ###".split()
    words = sorted({word.lower() for word in all_words()})
    continued = [_CONTINUES + digit for digit in digits]
    tokens = ["<unk>", EOS, *special, *digits, *continued, *signs, *words]
    tokens += _words(backbone.format_prompt("") + " " + backbone.format_answer(""), special)
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    model = models.WordPiece(
        vocabulary,
        unk_token="<unk>",
        continuing_subword_prefix=_CONTINUES,
        max_input_chars_per_word=64,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix=_CONTINUES, cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token=EOS,
        pad_token=EOS,
        additional_special_tokens=special,
    )


def _words(text, special):
    for token in special:
        text = text.replace(token, " ")
    return [word for word, _ in pre_tokenizers.Whitespace().pre_tokenize_str(text.lower())]
