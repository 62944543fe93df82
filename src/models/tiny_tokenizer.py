"""The word-level tokenizer of the bundled models: a token a word, a sign or a digit."""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from utils.tiny_problems import all_words

EOS = "<|endoftext|>"
_JOINED = "@@"  # opens a digit that continues a number: 18 is the tokens 1 and @@8


def build_tokenizer(backbone):
    """A fast tokenizer over the words of the tiny benchmark and of a backbone's own texts, digits and
    step signs.

    Texts are lower-cased; unknown words become ``<unk>``. Special tokens have the published names.
    """
    special = list(backbone.special_tokens.values())
    digits = [str(d) for d in range(10)]
    signs = "<< >> + - * / = ###".split()
    words = sorted({word.lower() for word in all_words()})
    tokens = ["<unk>", EOS, *special, *digits, *(_JOINED + d for d in digits), *signs, *words]
    tokens += _words(backbone.format_prompt("") + " " + backbone.format_answer(""), special)
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    model = models.WordPiece(
        vocabulary, unk_token="<unk>", continuing_subword_prefix=_JOINED, max_input_chars_per_word=64
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix=_JOINED, cleanup=False)
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
