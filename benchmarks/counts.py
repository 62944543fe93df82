"""What a workload has to compute and to move, counted from the model's shape; and its products.

A workload is a list of forward passes (``Pass``). ``operations`` and ``least_bytes`` count them,
``run_products`` computes their matrix products with weights and nothing else.
"""

from dataclasses import dataclass

import torch

from src.sampling.memory import cache_shape, cached_numbers
from src.sampling.samplers import ATTENTION

CHUNK_TOKENS = {"cpu": 2048, "cuda": 1 << 16}  # inputs of one product; memory is bounded by it


@dataclass(frozen=True)
class Pass:
    """One forward pass: ``rows`` sequences read ``new`` further positions each.

    They attend to ``prompt`` cached positions, which are in memory ``groups`` times, and to
    ``suffix`` cached positions of their own. last: of how many positions of a row the last block
    computes more than keys and values. logits: rows of the output layer. starts: of how many rows
    the first block is computed up to its first dropout mask, None: of all.
    """

    rows: int
    new: int
    last: int
    prompt: int = 0
    groups: int = 0
    suffix: int = 0
    logits: int = 0
    starts: int | None = None


@dataclass(frozen=True)
class Map:
    """A linear map. weight (in, out); bias (out,) or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    @classmethod
    def of(cls, module):
        """That of a Linear, or of GPT-2's Conv1D."""
        is_linear = isinstance(module, torch.nn.Linear)
        return cls(module.weight.T if is_linear else module.weight, module.bias)

    def columns(self, first, last):
        return Map(self.weight[:, first:last], self.bias[first:last])


def sampling_passes(request):
    """The passes of ``engine.sample`` when no trajectory ends early."""
    questions, rows = len(request.prompts), len(request.prompts) * request.n_samples
    length = len(request.prompts[0])
    groups = rows if request.sampling.resample_prompt else questions
    starts = questions if request.sampling.resample_prompt else None
    return [
        Pass(groups, length, last=1, starts=starts),
        *suffix_passes(rows, length, groups, 1, request.latent_length, request.max_new_tokens),
    ]


def suffix_passes(rows, prompt, groups, first, thoughts, answer):
    """The passes of rows that continue from thought number ``first``, to the answer's end."""
    cached = {"prompt": prompt, "groups": groups}
    passes = latent_passes(rows, prompt, groups, first, thoughts)
    passes.append(Pass(rows, 2, last=2, suffix=thoughts - 1, logits=rows, **cached))
    passes += [
        Pass(rows, 1, last=1, suffix=thoughts + token, logits=rows, **cached)
        for token in range(1, answer)
    ]
    return passes


def latent_passes(rows, prompt, groups, first, thoughts):
    """Those of them that read a thought only."""
    return [
        Pass(rows, 1, last=1, prompt=prompt, groups=groups, suffix=step - 1)
        for step in range(first, thoughts)
    ]


def annotation_passes(request, n_rollouts):
    """The passes of ``rollouts.annotate`` when no question is skipped."""
    questions, rows = len(request.prompts), len(request.prompts) * request.n_samples
    length, thoughts = len(request.prompts[0]), request.latent_length
    groups = rows if request.sampling.resample_prompt else questions
    passes = sampling_passes(request)
    for step in range(1, thoughts + 1):
        random = step < thoughts or request.sampling.uses_dropout
        count = rows * (n_rollouts if random else 1)
        passes += suffix_passes(count, length, groups, step, thoughts, request.max_new_tokens)
    return passes


def beam_search_passes(request, beams, proposals):
    """The passes of a beam search with noise: (generator's, reward model's)."""
    questions, length = len(request.prompts), len(request.prompts[0])
    kept, slots = questions * beams, questions * beams * proposals
    thoughts, answer = request.latent_length, request.max_new_tokens
    generator = [
        Pass(questions, length, last=1),
        *suffix_passes(kept, length, questions, 1, thoughts, answer),
    ]
    rewards = [Pass(questions, length, last=0)]
    rewards += [
        Pass(slots, 1, last=1, prompt=length, groups=questions, suffix=step)
        for step in range(thoughts)
    ]
    return generator, rewards


def scoring_passes(questions, prompt, n_samples, thoughts):
    """The passes of ``LatentRM.forward``."""
    rows = questions * n_samples
    return [
        Pass(questions, prompt, last=0),
        Pass(rows, thoughts, last=thoughts, prompt=prompt, groups=questions),
    ]


@dataclass(frozen=True)
class BlockMaps:
    """The linear maps of a block: lists of Map. qkv: those of queries, keys and values at once."""

    qkv: list
    queries: list
    keys_values: list
    output: list
    mlp: list

    @classmethod
    def of(cls, block):
        if hasattr(block, "attn"):  # GPT-2
            qkv = Map.of(block.attn.c_attn)
            width = len(qkv.weight)
            queries, keys_values = qkv.columns(0, width), qkv.columns(width, 3 * width)
            attention, names = ([qkv], [queries], [keys_values]), ("c_fc", "c_proj")
            output = block.attn.c_proj
        else:
            parts = [getattr(block.self_attn, f"{name}_proj") for name in "qkv"]
            q, k, v = map(Map.of, parts)
            attention, names = ([q, k, v], [q], [k, v]), ("gate_proj", "up_proj", "down_proj")
            output = block.self_attn.o_proj
        return cls(*attention, [Map.of(output)], [Map.of(getattr(block.mlp, n)) for n in names])


def products(model, work):
    """The products with weights of a pass: (Map, tokens), one for each."""
    drops_attention = ATTENTION in model.dropout_sites
    for number, block in enumerate(model.blocks):
        is_start = number == 0 and work.starts is not None
        rows = work.starts if is_start else work.rows
        mlp_rows = work.rows if drops_attention else rows
        queries = work.last if number == len(model.blocks) - 1 else work.new
        maps = BlockMaps.of(block)
        counts = [(maps.output, rows * queries), (maps.mlp, mlp_rows * queries)]
        if queries == work.new:
            counts.append((maps.qkv, rows * work.new))
        else:
            counts += [(maps.keys_values, rows * work.new), (maps.queries, rows * queries)]
        yield from ((of, tokens) for group, tokens in counts for of in group if tokens)
    if work.logits:
        yield Map.of(model.lm_head), work.logits


@torch.inference_mode()
def run_products(model, passes):
    """Computes the products with weights of the passes, on tensors of their shapes."""
    chunk, like = CHUNK_TOKENS[model.device.type], {"device": model.device, "dtype": model.dtype}
    for work in passes:
        for of, tokens in products(model, work):
            for first in range(0, tokens, chunk):
                x = torch.ones(min(chunk, tokens - first), len(of.weight), **like)
                x @ of.weight if of.bias is None else torch.addmm(of.bias, x, of.weight)


def product_operations(model, passes):
    """Multiplications and additions of the products with weights."""
    return sum(
        2 * tokens * of.weight.numel() for work in passes for of, tokens in products(model, work)
    )


def attention_operations(model, passes):
    """Those of attention: scores and weighted values, each query with the keys it may see."""
    config = model.config
    layers, _, width = cache_shape(config)
    pairs = 0  # of a query and a key
    for work in passes:
        before = work.prompt + work.suffix
        every = sum(before + position + 1 for position in range(work.new))
        in_last = sum(before + work.new - position for position in range(work.last))
        starts = work.rows if work.starts is None else work.starts
        pairs += starts * every + work.rows * ((layers - 2) * every + in_last)
    return 4 * pairs * config.num_attention_heads * width


def operations(model, passes):
    """All multiplications and additions that are counted: products with weights, and attention."""
    return product_operations(model, passes) + attention_operations(model, passes)


def least_bytes(model, passes):
    """What must move between memory and chip: each pass reads weights and caches once.

    Weights do not stay on the chip between two passes; activations do. Keys and values of the new
    positions are written.
    """
    per_position, moved = cached_numbers(model.config), 0
    for work in passes:
        moved += sum(of.weight.numel() for of, _ in products(model, work))
        positions = work.groups * work.prompt + work.rows * (work.suffix + work.new)
        moved += positions * per_position
    return moved * model.dtype.itemsize


def training_operations(model, passes):
    """Of a training step: the backward pass has two products for each one of the forward pass."""
    return 3 * operations(model, passes)


def training_bytes(model, passes):
    """Of a training step with AdamW: forward, twice as much backward, and the update.

    The update reads weight, gradient and two moments, and writes all but the gradient.
    """
    parameters = sum(p.numel() * p.itemsize for p in model.parameters())
    return 3 * least_bytes(model, passes) + 7 * parameters
