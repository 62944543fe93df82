"""The word-level tokenizer of the embedded models: a token a word, a sign or a digit."""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from src.models.special_tokens import END, LATENT, START
from utils.tiny_problems import all_words

EOS = "<|endoftext|>"
_JOINED = "@@"  # opens a digit that continues a number: 18 is the tokens 1 and @@8


def build_tokenizer():
    """A fast tokenizer over the words of the tiny benchmark, its digits and its step signs.

    Texts are lower-cased; unknown words become ``<unk>``. Special tokens have the published names.
    """
    digits = [str(d) for d in range(10)]
    signs = "<< >> + - * / = ###".split()
    words = sorted({word.lower() for word in all_words()})
    special = [EOS, START, END, LATENT]
    tokens = ["<unk>", *special, *digits, *(_JOINED + d for d in digits), *signs, *words]
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
        additional_special_tokens=[START, END, LATENT],
    )
