"""The special tokens of latent reasoning; their ids always come from the tokenizer.

A backbone's ``special_tokens`` are {key in the config: token}.
"""

START, END, LATENT = "<|start-latent|>", "<|end-latent|>", "<|latent|>"
TOKENS = {
    "start_latent_token_id": START,
    "end_latent_token_id": END,
    "latent_token_id": LATENT,
}

UNKNOWN_SHARE = 0.1  # of the questions of a file may hold words that the tokenizer does not know


def missing_tokens(tokenizer, special_tokens):
    """The special tokens that the tokenizer lacks."""
    vocabulary = tokenizer.get_vocab()
    return [token for token in special_tokens.values() if token not in vocabulary]


def set_token_ids(model, tokenizer):
    """Sets the ids in a backbone's config: published ones lack them or hold -100 or -1."""
    for key, token in model.special_tokens.items():
        setattr(model.config, key, tokenizer.convert_tokens_to_ids(token))
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


def add_tokens(model, tokenizer):
    """Adds the missing special tokens to tokenizer and embeddings (training from a plain checkpoint)."""
    missing = missing_tokens(tokenizer, model.special_tokens)
    if missing:
        tokenizer.add_special_tokens({"additional_special_tokens": missing})
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if len(tokenizer) > model.config.vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    return set_token_ids(model, tokenizer)


def rows_with_unknown(model, tokenizer, rows):
    """The places of the rows whose question the tokenizer does not wholly know."""
    prompts = model.encode(tokenizer, [row["question"] for row in rows])
    return [i for i, ids in enumerate(prompts) if tokenizer.unk_token_id in ids]


def unknown_word(tokenizer, text):
    """The first part of a text that the tokenizer does not know, or None; of a fast tokenizer only."""
    if not tokenizer.is_fast:
        return None
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return next((text[i:j] for token, (i, j) in pairs if token == tokenizer.unk_token_id), None)
