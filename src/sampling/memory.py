"""How many rows may be in flight: bounds by bytes, from the model's shape.

The bound is a constant of the kind of device and not the memory that happens to be free: batches of other
shapes round differently, and a run should give the same numbers twice.
"""

WORK_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}  # for the caches and activations of one chunk
_WIDTHS = 24  # numbers of model width that a row's forward pass holds at once beside its caches, about


def _work_bytes(model):
    return WORK_BYTES.get(model.device.type, WORK_BYTES["cpu"])


def rows_within(model, positions, logits=1):
    """How many rows of so many cached positions, each with so many positions of logits, fit at once; >= 1."""
    config, itemsize = model.config, model.dtype.itemsize
    cached = positions * cache_numbers(config) * itemsize
    active = _WIDTHS * config.hidden_size * itemsize
    scores = logits * config.vocab_size * 4 * 2  # float32, and their softmax
    return max(1, _work_bytes(model) // (cached + active + scores))


def tokens_within(model):
    """How many prompt tokens may be read at once where every sample reads its prompt anew; >= 1."""
    config, itemsize = model.config, model.dtype.itemsize
    per_token = (cache_numbers(config) + _WIDTHS * config.hidden_size) * itemsize
    return max(1, _work_bytes(model) // 4 // per_token)  # the prompts' own cache comes on top


def cache_numbers(config):
    """Keys and values that one position takes in all layers of a GPT-2 or a LLaMA."""
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width
