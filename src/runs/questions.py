"""From the questions of a data file to prompts, after a check that the model can answer them."""

from src.models.tokenizers import UNKNOWN_SHARE, unknown_word
from src.sampling.trajectories import check_length
from utils.errors import UserError, warn

_CHUNK = 4096  # questions that are tokenized together


def encode_questions(model, tokenizer, rows):
    """The prompts of the rows, lists of token ids."""
    prompts = []
    for first in range(0, len(rows), _CHUNK):
        questions = [row["question"] for row in rows[first : first + _CHUNK]]
        prompts += model.encode(tokenizer, questions)
    return prompts


def check_lengths(prompts, max_positions, latent_length, max_new_tokens, data_path):
    """Raises UserError where a prompt, its thoughts and its answer exceed the model's positions."""
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    try:
        check_length(max_positions, len(prompts[longest]), latent_length, max_new_tokens)
    except ValueError as error:
        raise UserError(f"{data_path}: row {longest}: {error}") from None


def check_words(prompts, rows, model, tokenizer, data_path, allow_unknown):
    """Raises UserError where more than UNKNOWN_SHARE of the questions hold unknown words.

    A smaller share, or any with ``allow_unknown``, gives a warning.
    """
    unknown = [i for i, ids in enumerate(prompts) if tokenizer.unk_token_id in ids]
    if not unknown:
        return
    word = unknown_word(tokenizer, model.format_prompt(rows[unknown[0]]["question"]))
    fault = (
        f"{data_path}: {len(unknown)} of {len(rows)} questions hold words that "
        f"{model.name_or_path} does not know, such as {word!r}"
    )
    if len(unknown) > UNKNOWN_SHARE * len(rows) and not allow_unknown:
        raise UserError(
            f"{fault}: choose a benchmark in its words (data/tiny_*.json for a bundled model), "
            "another --model_id, or --allow_unknown true"
        )
    warn(fault)
