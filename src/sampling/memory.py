"""How many rows are computed at once: bounds by bytes, from the model's shape.

The bound is a constant of the kind of device, not the memory that happens to be free: batches of
other shapes round differently, and a run should give the same numbers twice.
"""

WORK_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}  # for the caches and activations of one chunk
_WEIGHT_BYTES = 20  # of an attention weight that is dropped: score, weight, random bits, mask
_WIDTHS = 24  # activations of a row, in model widths, that a forward pass holds at once, about


def _work_bytes(model):
    return WORK_BYTES.get(model.device.type, WORK_BYTES["cpu"])


def rows_within(model, positions, logits=1):
    """How many rows fit at once, at least 1.

    positions: cached positions of a row. logits: its positions with logits.
    """
    config, itemsize = model.config, model.dtype.itemsize
    cached = positions * cached_numbers(config) * itemsize
    active = _WIDTHS * config.hidden_size * itemsize
    scores = logits * config.vocab_size * 4 * 2  # float32, and their softmax
    return max(1, _work_bytes(model) // (cached + active + scores))


def tokens_within(model, keys=0):
    """How many prompt tokens are read at once where every sample reads its prompt; at least 1.

    keys: the length of a prompt, if its attention weights are in memory because they are dropped.
    """
    config, itemsize = model.config, model.dtype.itemsize
    per_token = (cached_numbers(config) + _WIDTHS * config.hidden_size) * itemsize
    per_token += _WEIGHT_BYTES * config.num_attention_heads * keys
    return max(1, _work_bytes(model) // 4 // per_token)  # the prefix cache comes on top


def cache_shape(config):
    """Layers, key-value heads and head width of a GPT-2 or a LLaMA."""
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, heads, width


def cached_numbers(config):
    """Keys and values of one position in all layers."""
    layers, heads, width = cache_shape(config)
    return 2 * layers * heads * width
