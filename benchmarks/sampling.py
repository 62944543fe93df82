"""The sampling engine against the plain way, one JSON line: python -m benchmarks.sampling

GPT-2-small shape with random weights; every trajectory has 6 thoughts and exactly 24 answer tokens.
The plain way is what one writes first: the prompt repeated for every sample, a growing cache, and
calls of the Hugging Face language model for hidden states, which compute logits at every position.
With --plain last_logits they compute them at the last position only. Times are of one run after a
short warm-up.
"""

import argparse
import inspect
import json
import platform
import resource
import time
from pathlib import Path
from unittest import mock

import torch
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from src.models import model_class
from src.sampling import rng
from src.sampling.engine import sample
from src.sampling.memory import tokens_within
from src.sampling.samplers import Sampling
from src.sampling.trajectories import Request

VARIANTS = {
    "noise": Sampling("noise", noise_std=0.6),
    "dropout_shared_prompt": Sampling("dropout", dropout_p=0.2, dropout_prompt=False),
    "dropout_resampled_prompt": Sampling("dropout", dropout_p=0.2),
}
NEVER = -1  # as the id of end-of-text, so that no answer ends early


def cached(cache):
    """The keyword argument for a cache; before transformers 5.24 it was past_key_values."""
    new = "cache" in inspect.signature(GPT2LMHeadModel.forward).parameters
    return {"cache" if new else "past_key_values": cache}


def build_model(device):
    """GPT-2 small with random weights and ids for the special tokens."""
    torch.manual_seed(0)
    config = GPT2Config(attn_pdrop=0.0, embd_pdrop=0.0)
    model = model_class("coconut", "gpt2")(config).to(device).eval()
    model.config.end_latent_token_id, model.config.eos_token_id = 50256, NEVER
    return model


@torch.inference_mode()
def plain(model, request, last_logits=False):
    """The plain way, with torch's own generator; returns the answer ids (R, A)."""
    sampling = request.sampling
    ids = torch.tensor(request.prompts, device=model.device)
    ids = ids.repeat_interleave(request.n_samples, dim=0)  # (R, L)
    cache, uses_dropout = DynamicCache(), sampling.method == "dropout"

    def read(**inputs):
        return model(
            **inputs, **cached(cache), output_hidden_states=True, logits_to_keep=int(last_logits)
        )

    _set_dropout(model, sampling.dropout_p if uses_dropout and sampling.dropout_prompt else 0)
    hidden = read(input_ids=ids).hidden_states[-1][:, -1:]  # (R, 1, D)
    _set_dropout(model, sampling.dropout_p if uses_dropout else 0)
    for step in range(request.latent_length):
        thought = hidden
        if not uses_dropout:
            thought = hidden + sampling.noise_std * torch.randn_like(hidden)
        if step == request.latent_length - 1:
            _set_dropout(model, 0)
        hidden = read(inputs_embeds=thought).hidden_states[-1]
    token = torch.full_like(ids[:, :1], model.config.end_latent_token_id)
    tokens = []
    for _ in range(request.max_new_tokens):
        token = read(input_ids=token).logits[:, -1:].argmax(-1)
        tokens.append(token)
    return torch.cat(tokens, dim=1)


def _set_dropout(model, p):
    for block in model.transformer.h:
        for module in (block.attn.resid_dropout, block.mlp.dropout):
            module.p = p
            module.train(p > 0)


def timed(device, call, *args):
    """Seconds of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call(*args)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.inference_mode()
def products(model, request):
    """The matrix products with weights that the engine computes, on tensors of its shapes."""
    rows = len(request.prompts) * request.n_samples
    length = len(request.prompts[0])
    prompts = rows if request.sampling.resample_prompt else len(request.prompts)
    chunk = max(1, tokens_within(model) // length)
    for start in range(0, prompts, chunk):
        size = min(chunk, prompts - start)
        _block_products(model, length * size, size)
    sizes = [rows] * (request.latent_length - 1)
    sizes += [2 * rows]  # the last thought and the end-of-thinking token
    sizes += [rows] * (request.max_new_tokens - 1)
    for size in sizes:
        _block_products(model, size, size)
    for _ in range(request.max_new_tokens):
        model.lm_head(torch.ones(rows, model.config.n_embd, device=model.device))


def _block_products(model, tokens, last_tokens):
    """Those of one forward pass, whose last block needs ``last_tokens`` beyond keys and values."""
    for layer, block in enumerate(model.transformer.h):
        last = last_tokens if layer == len(model.transformer.h) - 1 else tokens
        sizes = ((block.attn.c_attn, tokens), (block.attn.c_proj, last))
        for conv, size in (*sizes, (block.mlp.c_fc, last), (block.mlp.c_proj, last)):
            x = torch.ones(size, conv.weight.shape[0], device=model.device)
            torch.addmm(conv.bias, x, conv.weight)


def random_share(device, model, request):
    """The share of a run's time that random numbers take, with their keys."""
    spent, depth = 0.0, 0

    def clocked(function):
        def wrapped(*args):
            nonlocal spent, depth
            depth += 1
            start = time.perf_counter()
            result = function(*args)
            if device == "cuda":
                torch.cuda.synchronize()
            depth -= 1
            if depth == 0:  # one may call another
                spent += time.perf_counter() - start
            return result

        return wrapped

    names = ("row_keys", "fold", "dropped", "normal")
    with mock.patch.multiple(rng, **{name: clocked(getattr(rng, name)) for name in names}):
        total = timed(device, sample, model, request)
    return spent / total


def reset_peak_memory(device):
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif platform.system() == "Linux":
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib(device):
    """The peak since the reset, of the device on CUDA, else of the process.

    Outside CUDA and Linux it is the peak since the start.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if platform.system() == "Linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def measure(device, model, name, questions, n_samples, new_tokens, plain_way):
    """The figures of one variant."""
    ids = torch.randint(0, 50000, (questions, 94), generator=torch.Generator().manual_seed(1))
    request = Request(
        ids.tolist(), list(range(questions)), n_samples, 6, new_tokens, 0, VARIANTS[name]
    )
    warm = Request(ids[:1].tolist(), [0], 4, 2, 2, 0, VARIANTS[name])
    sample(model, warm)
    reset_peak_memory(device)
    engine = timed(device, sample, model, request)
    memory = peak_memory_mib(device)
    figures = {
        "engine_s": round(engine, 2),
        "answer_tokens_per_s": round(questions * n_samples * new_tokens / engine, 1),
        "products_share": round(timed(device, products, model, request) / engine, 3),
        "random_share": round(random_share(device, model, request), 4),
        "peak_memory_mib": round(memory),
    }
    if plain_way != "skip":
        last = plain_way == "last_logits"
        plain(model, warm, last)
        reset_peak_memory(device)
        figures["plain_s"] = round(timed(device, plain, model, request, last), 2)
        figures["plain_peak_memory_mib"] = round(peak_memory_mib(device))
        figures["ratio"] = round(figures["plain_s"] / engine, 2)
    return figures


def main():
    parser = argparse.ArgumentParser(prog="benchmarks.sampling", description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--questions", type=int, default=2)
    parser.add_argument("--n_samples", type=int, default=64)
    parser.add_argument("--new_tokens", type=int, default=24)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument(
        "--plain", choices=["all_logits", "last_logits", "skip"], default="all_logits"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(device)
    sizes = (args.questions, args.n_samples, args.new_tokens)
    figures = {n: measure(device, model, n, *sizes, args.plain) for n in args.variants}
    about = {"device": device, "threads": args.threads, "torch": torch.__version__}
    print(json.dumps(about | {"questions": args.questions, "n_samples": args.n_samples} | figures))


if __name__ == "__main__":
    main()
