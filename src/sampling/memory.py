"""How many rows and tokens are computed at once: bounds by bytes, from the model's shape.

Models that work together share a Budget, their attribute ``budget``. One half is for the rows of a
request (``rows_in_flight``), the other for what is computed on top of them: rollouts, candidates,
a reward model's rows (``rows_within``), prompts while they are read (``tokens_within``).

Batches of other shapes round differently, and a run should give the same numbers twice. So budgets
take few values only, and small changes of the free memory rarely change one.
"""

from dataclasses import dataclass, replace

from utils import device_memory
from utils.device_memory import GIB
from utils.errors import UserError

WORK_BYTES = {"cpu": 4 * GIB, "cuda": 8 * GIB}  # budget of a model for which none was set
_MOST_ON_CPU = 8 * GIB  # of a default budget; larger batches are no faster there
_FREE_SHARE = {"cpu": 0.5, "cuda": 0.8}  # of the free memory that a budget may take by default
_LIMIT_SHARE = 0.9  # of --memory_gib; the rest is for what grows that is not counted here
_WEIGHT_BYTES = 20  # of an attention weight that is dropped: score, weight, random bits, mask
_WIDTHS = 24  # activations of a position, in model widths, that a forward pass holds at once, about
_COPIES = 2  # of a row's cache: itself, and the one that it is copied to when rows leave or enter
# Of a budget: rows in flight, or those on top of them; prompts that are read; logits.
_ROWS_SHARE, _PROMPTS_SHARE, _LOGITS_SHARE = 1 / 2, 1 / 4, 1 / 16
# For prompts that are read; longer passes are no faster on a CPU: they leave its caches.
_PROMPTS_BYTES = {"cpu": 128 << 20}


@dataclass
class Budget:
    """size: bytes for caches and activations. least: bytes with which any work can be done."""

    size: int
    least: int = 1

    def halve(self):
        """Whether the size could be halved: it stays above ``least``."""
        if self.size // 2 < self.least:
            return False
        self.size //= 2
        return True


def set_budget(models, positions, gib=None):
    """Sets one Budget for models that work together, on one device, and returns it.

    positions: of the longest prompt with its thoughts and its answer. gib: GiB that this process
    may hold, models included; None: a CPU gets 8 GiB or half of the free memory, CUDA 80 % of it.
    Raises UserError where ``gib`` leaves no room for a trajectory.
    """
    device = models[0].device
    sizes = [_row_bytes(model, positions, positions, positions) for model in models]
    least = max(sizes) / _ROWS_SHARE
    device_memory.release(device)  # an earlier job's memory
    device_memory.cap(device, gib and gib * GIB)
    if gib is None:
        size = _FREE_SHARE[device.type] * device_memory.free(device)
        size = min(size, _MOST_ON_CPU) if device.type == "cpu" else size
    else:
        size = _LIMIT_SHARE * gib * GIB - device_memory.held(device)
        if size < least:
            raise UserError(_too_little(gib, device, least))
    budget = Budget(max(_steady(size), int(least)), int(least))
    for model in models:
        model.budget = budget
    return budget


def _too_little(gib, device, least):
    held = device_memory.held(device)
    needed = (held + 2 * least) / _LIMIT_SHARE / GIB
    return (
        f"--memory_gib {gib:g}: models and libraries take {held / GIB:.2f} GiB on {device}, one "
        f"trajectory {least / GIB:.2f}; give at least {needed + 0.005:.2f}"
    )


def _steady(size):
    """The next smaller number of the form 2^k or 1.5 * 2^k."""
    power = 1 << max(1, int(size)).bit_length() - 1
    return power * 3 // 2 if size >= power * 1.5 else power


def _work_bytes(model):
    budget = getattr(model, "budget", None)
    return budget.size if budget else WORK_BYTES.get(model.device.type, WORK_BYTES["cpu"])


def rows_in_flight(model, request):
    """How many rows of a request the model may hold at once, at least 1.

    Where every sample reads the prompt on its own, a row holds a prompt, too.
    """
    longest = max(map(len, request.prompts))
    positions, new = request.latent_length + request.max_new_tokens, 2
    if request.sampling.resample_prompt:
        return rows_within(model, longest + positions, new)
    return rows_within(model, positions, new, longest, request.n_samples)


def rows_within(model, positions, new, prompt=0, sharers=1):
    """How many rows fit on top of what is in memory, at least 1.

    positions: cached positions of a row. new: positions that it reads at once. prompt: length of a
    prompt that ``sharers`` rows read once and hold together; 0: their prompts are in memory.
    """
    cached, new = positions + prompt / sharers, max(new, prompt / sharers)
    row = _row_bytes(model, cached, new, positions + prompt)
    return max(1, int(_ROWS_SHARE * _work_bytes(model) / row))


def _row_bytes(model, cached, new, keys):
    """Of ``cached`` positions, and of a pass over ``new`` ones that attend to ``keys``."""
    config, itemsize = model.config, model.dtype.itemsize
    cache = _COPIES * cached * cached_numbers(config) * itemsize
    scores = _WEIGHT_BYTES * config.num_attention_heads * keys
    return cache + new * (_WIDTHS * config.hidden_size * itemsize + scores)


def tokens_within(model, keys=0):
    """How many prompt tokens are read at once where every sample reads its prompt; at least 1.

    keys: the length of a prompt, if its attention weights are in memory because they are dropped.
    """
    config, itemsize = model.config, model.dtype.itemsize
    per_token = (cached_numbers(config) + _WIDTHS * config.hidden_size) * itemsize
    per_token += _WEIGHT_BYTES * config.num_attention_heads * keys
    work = _PROMPTS_SHARE * _work_bytes(model)
    work = min(work, _PROMPTS_BYTES.get(model.device.type, work))
    return max(1, int(work / per_token))


def logits_within(model, logit_bytes=None):
    """How many rows of logits are computed at once; at least 1.

    logit_bytes: what is in memory of a logit, default: itself, in float32, with its softmax.
    """
    row = model.config.vocab_size * (logit_bytes or model.dtype.itemsize + 4 + 4)
    return max(1, int(_LOGITS_SHARE * _work_bytes(model) / row))


def question_parts(request, rows):
    """Splits a request by questions so that each part has at most ``rows`` rows, if it can.

    Returns pairs: the number of the part's first question, and its Request.
    """
    size, count = max(1, rows // request.n_samples), len(request.prompts)
    return [(first, _questions(request, first, first + size)) for first in range(0, count, size)]


def sample_parts(request, rows):
    """Splits a request by samples, as ``question_parts`` by questions; returns Requests."""
    size, end = max(1, rows // len(request.prompts)), request.first_sample + request.n_samples
    starts = range(request.first_sample, end, size)
    return [replace(request, first_sample=k, n_samples=min(size, end - k)) for k in starts]


def in_turns(request, room):
    """Splits a request whose rows exceed ``room``, so that it is done in parts of at most half of
    it: for each group of its questions a list of Requests, each of some samples."""
    if len(request.prompts) * request.n_samples <= room:
        return [[request]]
    return [sample_parts(part, room // 2) for _, part in question_parts(request, room // 2)]


def _questions(request, first, end):
    prompts, ids = request.prompts[first:end], request.question_ids[first:end]
    return replace(request, prompts=prompts, question_ids=ids)


def cache_shape(config):
    """Layers, key-value heads and head width of a GPT-2 or a LLaMA."""
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, heads, width


def cached_numbers(config):
    """Keys and values of one position in all layers."""
    layers, heads, width = cache_shape(config)
    return 2 * layers * heads * width
