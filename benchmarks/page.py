"""The page of results: python -m benchmarks.page outputs/benchmarks/cpu.json

Copies the JSON file of benchmarks.all to docs/results and the figures beside it to docs/figures,
and writes findings and tables into docs/performance.md, between the markers of the device.
"""

import json
import re
import shutil
import textwrap
from pathlib import Path

from benchmarks.figures import figure_name, shapes
from benchmarks.sampling import PLAIN
from utils.cli import Parser
from utils.errors import UserError, reports_user_errors
from utils.files import write_text

DOCS = Path("docs")


def of_model(results, limits):
    """The rows of the shape and number format of an entry of ``results["limits"]``."""
    model = (limits["shape"], limits["dtype"])
    return [row for row in results["rows"] if (row["shape"], row["dtype"]) == model]


def tables(results):
    """Tables and figures of a run, as markdown."""
    parts = [_machine(results["about"])]
    for limits in results["limits"]:
        parts += [f"### {_model(limits)} on {results['about']['device']}", _limits(limits)]
        rows = of_model(results, limits)
        for table in (_against_products, _sampling, _latent_and_batch, _compiled, _others):
            parts += table(rows)
        if (limits["shape"], limits["dtype"]) in shapes(results):
            parts.append(_figure(results, limits))
    parts += _kernels(results["kernels"]) + _formats(results["formats"])
    parts += _skipped(results.get("skipped", []))
    return "\n\n".join(parts)


def _model(row):
    return f"{row['shape']}, {row['dtype']}"


def _table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _seconds(timing):
    """Seconds with three digits; a dash where nothing was measured or memory ran out."""
    if not timing or timing.get("out_of_memory"):
        return "-"
    return f"{timing['seconds']:.3g}"


def _percent(share):
    return "-" if share is None else f"{100 * share:.0f} %"


def _times(row, name):
    """How many times as fast as a plain way; a dash where one of them was not measured."""
    timing = row["plain"].get(name)
    if not timing or row.get("out_of_memory"):
        return "-"
    return f"{timing['seconds'] / row['seconds']:.2f}"


def findings(results):
    """What the tables say, in a few lines for each model."""
    parts = []
    for shape, dtype in shapes(results):
        rows = [row for row in results["rows"] if (row["shape"], row["dtype"]) == (shape, dtype)]
        rows = [row for row in rows if "seconds" in row]
        lines = [_wrapped(line) for line in _findings_of(rows)]
        parts.append("\n".join([f"{results['about']['machine']}, {shape}, {dtype}:\n", *lines]))
    return "\n\n".join(parts)


def _findings_of(rows):
    """Lines of a list, of the rows of one model."""
    products = [f"{row['variant']} {row['over_products']:.2f}" for row in rows if _beside(row)]
    if products:
        yield f"- time of sampling over that of its products with weights: {'; '.join(products)};"
    name = "last logits"
    largest = max((row["n_samples"] for row in rows if row["plain"].get(name)), default=None)
    sampling = [row for row in rows if row["plain"].get(name) and row["n_samples"] == largest]
    faster = [f"{row['variant']} {_times(row, name)}" for row in sampling]
    if faster:
        yield (
            "- times as fast as the plain way with logits at the last position only, N = "
            f"{largest}: {'; '.join(faster)};"
        )
    others = [
        f"{row['workload']} {_times(row, 'plain')}" for row in rows if "plain" in row["plain"]
    ]
    if others:
        yield f"- times as fast as the plain way: {'; '.join(others)};"
    shares = [row["limit_share"] for row in rows if row["workload"] == "latent phase"]
    if shares:
        yield (
            f"- share of the machine's limit in the latent phase: {_percent(max(shares))} at best."
        )


def _beside(row):
    return "over_products" in row


def _wrapped(line):
    return textwrap.fill(line, 100, subsequent_indent="  ", break_on_hyphens=False)


def _machine(about):
    names = f"{about['machine']}, cores: {about['cores']}, threads: {about['threads']}"
    versions = f"torch {about['torch']}, transformers {about['transformers']}"
    command = f"`python -m benchmarks.all --device {about['device']}`"
    return (
        f"{command}\n{names}.\n{versions}, Python {about['python']}.\n"
        f"{about['date']}, commit {about['commit']}, {about['seconds'] / 60:.0f} minutes."
    )


def _limits(limits):
    return (
        f"The machine's limit: {limits['operations_per_s'] / 1e9:,.0f} GFLOP/s, "
        f"{limits['bytes_per_s'] / 1e9:,.0f} GB/s.\n"
        f"Weights {limits['weights_mib']:,.0f} MiB, the engine's budget "
        f"{limits['budget_mib']:,.0f} MiB."
    )


def _against_products(rows):
    rows = [row for row in rows if row["workload"] == "against products"]
    if not rows:
        return []
    first = rows[0]
    header = ["sampler", "engine, s", "products, s", "ratio", "share of the limit"]
    cells = [
        [row["variant"], _seconds(row), f"{row['products_s']:.3g}", f"{row['over_products']:.2f}",
         _percent(row["limit_share"])]
        for row in rows if _beside(row)
    ]  # fmt: skip
    sizes = f"{first['questions']} x {first['n_samples']} trajectories"
    caption = (
        f"Sampling beside its products with weights, {sizes}, {first['answer']} answer tokens:"
    )
    return [caption, _table(header, cells)]


def _sampling(rows):
    rows = [row for row in rows if row["workload"] == "sampling"]
    if not rows:
        return []
    plain = [f"plain, {name}, s" for name in PLAIN]
    faster = [f"times as fast, {name}" for name in PLAIN]
    header = ["N", "sampler", "engine, s", *plain, *faster, "share of the limit", "memory, MiB"]
    cells = [
        [
            *(row["n_samples"], row["variant"], _seconds(row)),
            *(_seconds(row["plain"].get(name)) for name in PLAIN),
            *(_times(row, name) for name in PLAIN),
            *(_percent(row.get("limit_share")), _memory(row)),
        ]
        for row in rows
    ]
    caption = (
        f"Sampling at growing N, questions a batch: {rows[0]['questions']}, answer tokens: "
        f"{rows[0]['answer']}.\nMemory is what a call needs beyond what was in use:"
    )
    return [caption, _table(header, cells)]


def _memory(row):
    return "-" if row.get("out_of_memory") else f"{row['work_mib']:,.0f}"


def _latent_and_batch(rows):
    names = ("latent phase", "batch")
    header = ["what", "questions", "N", "s", "trajectories a second", "share of the limit"]
    cells = [
        [
            {"batch": "whole"}.get(row["workload"], row["workload"]),
            *(row["questions"], row["n_samples"], _seconds(row)),
            f"{row['questions'] * row['n_samples'] / row['seconds']:,.1f}",
            _percent(row["limit_share"]),
        ]
        for name in names
        for row in rows
        if row["workload"] == name and "seconds" in row
    ]
    caption = "The latent phase alone, without prompt and answer, and whole batches (noise):"
    return [caption, _table(header, cells)] if cells else []


def _compiled(rows):
    header = ["sizes", "eager, s", "compiled, s", "times as fast", "compiling, s"]
    cells = [
        [_sizes(row), _seconds(row["plain"]["eager"]), _seconds(row), _times(row, "eager"),
         f"{row['compile_s']:.0f}"]
        for row in rows if row["workload"] == "compiled"
    ]  # fmt: skip
    return ["Compiled steps (noise):", _table(header, cells)] if cells else []


def _others(rows):
    header = ["workload", "sizes", "ours, s", "plain, s", "times as fast", "share of the limit",
              "memory, ours / plain, MiB"]  # fmt: skip
    cells = [
        [
            *(row["workload"], _sizes(row), _seconds(row), _seconds(row["plain"]["plain"])),
            *(_times(row, "plain"), _percent(row.get("limit_share"))),
            f"{_memory(row)} / {_memory(row['plain']['plain'] or {'out_of_memory': True})}",
        ]
        for row in rows
        if "plain" in row["plain"]
    ]
    return ["Search, annotation, LatentRM:", _table(header, cells)] if cells else []


def _sizes(row):
    names = ("questions", "n_samples", "beams", "proposals", "rollouts")
    named = {"n_samples": "trajectories"}
    return ", ".join(f"{named.get(name, name)}: {row[name]}" for name in names if name in row)


def _figure(results, limits):
    name = figure_name(results, limits["shape"], limits["dtype"])
    return (
        f"![{_model(limits)}: time against N, trajectories a second against the batch,\n"
        f"and the share of the machine's limit.](figures/{name}.png)"
    )


def _kernels(rows):
    steps = ("latent step", "answer step")
    columns = [f"{of}, {step}" for step in steps for of in ("kernels a layer", "synchronizations")]
    cells = [
        [row["shape"], row["variant"]]
        + [f"{row[step][of]:.1f}" for step in steps for of in ("kernels", "synchronizations")]
        for row in rows
    ]
    caption = "Kernels of a layer and synchronizations, a step, counted at torch's dispatcher:"
    return [caption, _table(["model", "sampler", *columns], cells)] if cells else []


def _formats(rows):
    cells = [[row["model"], row["dtype"], row["what"], _percent(row["share"])] for row in rows]
    header = ["model", "format", "what", "differ from float32"]
    caption = (
        "Predictions that another number format changes. The logits of random weights are nearly\n"
        "equal, so that more of their tokens change than a trained model's:"
    )
    return [caption, _table(header, cells)] if cells else []


def _skipped(rows):
    lines = [f"- {_model(row)}, {row['workload']}: {row['why']}" for row in rows]
    return ["Not measured:", "\n".join(lines)] if lines else []


def blocks(results):
    """{name of its markers: what stands between them in the page}."""
    device = results["about"]["device"]
    return {f"findings, {device}": findings(results), f"tables, {device}": tables(results)}


def filled(text, name, content):
    """The page's ``text`` with ``content`` between the markers of a name."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    found = re.search(f"(?s){re.escape(start)}.*?{re.escape(end)}", text)
    if found is None:
        raise UserError(f"docs/performance.md: no line {start} with {end} after it; add both")
    return text[: found.start()] + f"{start}\n\n{content}\n\n{end}" + text[found.end() :]


@reports_user_errors
def main(argv=None):
    parser = Parser(prog="benchmarks.page", description=__doc__)
    parser.add_argument("results", type=Path, help="a JSON file of benchmarks.all")
    path = parser.parse_args(argv).results
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        device = results["about"]["device"]
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{path}: not a file that benchmarks.all wrote") from None
    shutil.copy(path, DOCS / "results" / f"performance_{device}.json")
    for shape, dtype in shapes(results):
        name = f"{figure_name(results, shape, dtype)}.png"
        shutil.copy(path.with_name(name), DOCS / "figures" / name)
    page = DOCS / "performance.md"
    text = page.read_text(encoding="utf-8")
    for name, content in blocks(results).items():
        text = filled(text, name, content)
    write_text(page, text)


if __name__ == "__main__":
    main()
