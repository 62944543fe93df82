"""What a command checks of its questions before it answers any."""

from src.models.special_tokens import UNKNOWN_SHARE, unknown_word
from src.sampling.engine import check_length
from utils.errors import UserError, warn

_CHUNK = 4096  # questions that are tokenized together


def check_questions(settings, rows, model, tokenizer):
    """Raises UserError where a question is too long for the model, or too many hold words unknown to it.

    Fewer than UNKNOWN_SHARE of them, or any number with --allow_unknown true, give a warning.
    """
    longest, longest_at, unknown = 0, 0, []
    for first in range(0, len(rows), _CHUNK):
        questions = [row["question"] for row in rows[first : first + _CHUNK]]
        for i, ids in enumerate(model.encode(tokenizer, questions), first):
            if len(ids) > longest:
                longest, longest_at = len(ids), i
            if tokenizer.unk_token_id in ids:
                unknown.append(i)
    limit = model.config.max_position_embeddings
    try:
        check_length(limit, longest, settings.latent_length, settings.max_new_tokens)
    except ValueError as error:
        raise UserError(f"{settings.data_path}: row {longest_at}: {error}") from None
    if unknown:
        _report_unknown(settings, rows, unknown, model, tokenizer)


def _report_unknown(settings, rows, unknown, model, tokenizer):
    word = unknown_word(tokenizer, model.format_prompt(rows[unknown[0]]["question"]))
    found = (
        f"{settings.data_path}: {len(unknown)} of {len(rows)} questions hold words that "
        f"{settings.model_id} does not know, such as {word!r}"
    )
    if len(unknown) <= UNKNOWN_SHARE * len(rows) or settings.allow_unknown:
        warn(found)
        return
    raise UserError(
        f"{found}: choose a benchmark in its words (data/tiny_*.json for a bundled model), another "
        f"--{settings.id_flag}, or --allow_unknown true"
    )
