"""Sampling: against its products with weights, against the plain way, and scaling."""

import torch
from torch._dynamo.exc import TorchDynamoException

from benchmarks import plain
from benchmarks.bench import VARIANTS, NotMeasured
from benchmarks.counts import latent_passes, run_products, sampling_passes
from benchmarks.timing import Call, alternate
from src.sampling.compilation import Compilation, missing_compiler
from src.sampling.engine import continue_thinking, sample, start

SHARED, OWN = "products, shared prompt", "products, own prompts"
PLAIN = {"all logits": False, "last logits": True}  # name: whether logits at the last position only


def sampling_call(bench, request):
    return Call(lambda: sample(bench.model, request))


def against_products(bench):
    """Each sampler beside the products with weights that it computes, in alternation."""
    questions, n_samples, answer = bench.sizes.against_products
    requests = {v: bench.request(v, questions, n_samples, answer) for v in VARIANTS}
    passes = {v: sampling_passes(request) for v, request in requests.items()}
    calls = {v: sampling_call(bench, request) for v, request in requests.items()}
    for label, variant in {SHARED: "noise", OWN: "dropout, own prompts"}.items():
        calls[label] = Call(lambda of=passes[variant]: run_products(bench.model, of))
    timings = alternate(calls, bench.device, bench.repeats)
    rows = []
    for variant, request in requests.items():
        products = timings[OWN if request.sampling.resample_prompt else SHARED]
        sizes = _sizes(variant, questions, n_samples, answer)
        counted = bench.count((bench.model, passes[variant]))
        row = bench.row("against products", sizes, timings[variant], counted)
        if products and timings[variant]:
            row["products_s"] = products.seconds
            row["over_products"] = timings[variant].seconds / products.seconds
        rows.append(row)
    return rows


def _sizes(variant, questions, n_samples, answer):
    return {"variant": variant, "questions": questions, "n_samples": n_samples, "answer": answer}


def scaling_in_n(bench):
    """Each sampler at each N beside the plain ways, which take the same time for all samplers.

    Plain dropout has masks of its own for each sample, as the paper's evaluation.
    """
    rows, questions, answer = [], bench.sizes.questions, bench.sizes.answer
    for n_samples in bench.sizes.n_samples:
        requests = {v: bench.request(v, questions, n_samples) for v in VARIANTS}
        calls = {v: sampling_call(bench, request) for v, request in requests.items()}
        own = requests["dropout, own prompts"]
        for name, last in PLAIN.items() if n_samples in bench.sizes.plain_at else ():
            calls[name] = Call(lambda last=last, own=own: plain.sample(bench.model, own, last))
        timings = alternate(calls, bench.device, bench.repeats)
        plain_timings = {name: timings[name] for name in PLAIN if name in timings}
        for variant, request in requests.items():
            sizes = _sizes(variant, questions, n_samples, answer)
            counted = bench.count((bench.model, sampling_passes(request)))
            row = bench.row("sampling", sizes, timings[variant], counted, plain_timings)
            rows.append(row)
        rows.append(_latent_phase(bench, requests["noise"]))
    return rows


def _latent_phase(bench, request):
    """The thoughts after the first, up to the answer, without the prompt."""
    model, questions, n_samples = bench.model, len(request.prompts), request.n_samples
    call = Call(lambda state: _think(model, request, state), lambda: _start(model, request))
    timing = alternate({"": call}, bench.device, bench.repeats)[""]
    rows, length = questions * n_samples, len(request.prompts[0])
    passes = latent_passes(rows, length, questions, 1, request.latent_length)
    sizes = _sizes("noise", questions, n_samples, 0)
    return bench.row("latent phase", sizes, timing, bench.count((model, passes)))


@torch.inference_mode()
def _start(model, request):
    return start(model, request)


@torch.inference_mode()
def _think(model, request, state):
    continue_thinking(model, request, state, 1)


def compiled(bench):
    """Noise with compiled steps beside eager ones; the first run compiles them.

    Raises NotMeasured where steps can't be compiled.
    """
    missing = missing_compiler(torch.device(bench.device))
    if missing:
        raise NotMeasured(f"{missing} is missing")
    questions, n_samples = bench.sizes.compiled
    request, model = bench.request("noise", questions, n_samples), bench.model
    compilation = Compilation()

    def run(how):
        model.compilation = how
        sample(model, request)

    calls = {"eager": Call(lambda: run(None)), "compiled": Call(lambda: run(compilation))}
    try:
        timings = alternate(calls, bench.device, bench.repeats)
    except TorchDynamoException as error:
        raise NotMeasured(f"steps do not compile: {type(error).__name__}") from error
    finally:
        model.compilation = None
    counted = bench.count((model, sampling_passes(request)))
    sizes = _sizes("noise", questions, n_samples, request.max_new_tokens)
    row = bench.row("compiled", sizes, timings.pop("compiled"), counted, timings)
    return [row | {"compile_s": compilation.seconds}]


def scaling_in_batch(bench):
    """Noise at growing numbers of questions."""
    rows, sizes = [], bench.sizes
    requests = {q: bench.request("noise", q, sizes.batch_samples) for q in sizes.batches}
    calls = {q: sampling_call(bench, request) for q, request in requests.items()}
    timings = alternate(calls, bench.device, bench.repeats)
    for questions, request in requests.items():
        counted = bench.count((bench.model, sampling_passes(request)))
        about = _sizes("noise", questions, sizes.batch_samples, sizes.answer)
        rows.append(bench.row("batch", about, timings[questions], counted))
    return rows
