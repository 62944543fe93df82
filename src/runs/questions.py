"""From the questions of a data file to prompts, after a check that the model can answer them."""

import numpy as np

from src.models.tokenizers import UNKNOWN_SHARE, unknown_word
from src.sampling.trajectories import check_length
from utils.errors import UserError, warn

_CHUNK = 4096  # questions that are tokenized together


def encode_questions(model, tokenizer, rows):
    """The prompts of the rows, arrays of token ids; as lists they would take 9 times the memory."""
    prompts = []
    for first in range(0, len(rows), _CHUNK):
        questions = [row["question"] for row in rows[first : first + _CHUNK]]
        encoded = model.encode(tokenizer, questions)
        prompts += [np.array(ids, dtype=np.int32) for ids in encoded]
    return prompts


def check_lengths(prompts, model, latent_length, max_new_tokens, data_path):
    """Raises UserError where a prompt, its thoughts and its answer exceed the model's positions."""
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    positions = model.config.max_position_embeddings
    try:
        check_length(positions, len(prompts[longest]), latent_length, max_new_tokens)
    except ValueError as error:
        raise UserError(f"{data_path}: row {longest}: {error}") from None


def check_words(prompts, rows, model, tokenizer, model_id, data_path, allow_unknown):
    """Raises UserError where more than UNKNOWN_SHARE of the questions hold unknown words.

    A smaller share, or any with ``allow_unknown``, gives a warning.
    """
    unknown = [i for i, ids in enumerate(prompts) if tokenizer.unk_token_id in ids]
    if not unknown:
        return
    word = unknown_word(tokenizer, model.format_prompt(rows[unknown[0]]["question"]))
    share = f"{data_path}: {len(unknown)} of {len(rows)} questions"
    fault = f"{share} hold words that {model_id} does not know, such as {word!r}"
    if len(unknown) <= UNKNOWN_SHARE * len(rows) or allow_unknown:
        warn(fault)
        return
    benchmark = "a benchmark in its words (data/tiny_*.json for a bundled model)"
    raise UserError(f"{fault}: choose {benchmark}, another --model_id, or --allow_unknown true")
