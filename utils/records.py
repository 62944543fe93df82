"""samples.jsonl: a line a question, appended as it finishes, shared by several processes.

While a run goes on, process 0 appends to samples.jsonl and process r to samples.rank<r>.jsonl. At a
start the parts of an interrupted run are gathered; at the end all lines are put in order.
"""

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

from utils.errors import UserError
from utils.files import write_text

NAME = "samples.jsonl"
_PARTS = "samples.rank*.jsonl"
PATTERNS = (NAME, _PARTS)


def rounded(values):
    """Nested lists of a matrix, to 4 decimals."""
    return [[round(x, 4) for x in row] for row in values.tolist()]


def parts(folder):
    """The files that hold records: samples.jsonl and the other processes' parts, if there."""
    folder = Path(folder)
    return [path for path in (folder / NAME, *sorted(folder.glob(_PARTS))) if path.is_file()]


def _text(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _records(path):
    """The whole records of a file; a last line that an interruption cut off is left out."""
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is a torn line
        try:
            record = json.loads(line)
            yield record["idx"], record
        except (ValueError, TypeError, KeyError):
            fault = f"{path}: line {number} is damaged"
            raise UserError(f"{fault}; remove the line and run again") from None


def read(folder):
    """{idx: record} of all processes' parts."""
    return {idx: record for path in parts(folder) for idx, record in _records(path)}


def gather(folder):
    """Joins all parts into samples.jsonl, in order; {idx: record}."""
    records, paths, main = read(folder), parts(folder), Path(folder) / NAME
    ordered = _text(records[idx] for idx in sorted(records))
    if paths and not (main.exists() and main.read_bytes() == ordered.encode()):
        write_text(main, ordered)
    for path in paths:
        if path != main:
            path.unlink()
    return records


def latents_path(folder, idx):
    """Where a run keeps the thoughts of a question."""
    return Path(folder) / "latents" / f"{idx:06d}.safetensors"


def read_latents(path):
    """What a run keeps of a question with N trajectories of up to T thoughts: {key: tensor}.

    "input_ids" (L,) of its prompt, "answer_ids" (N, A) padded with -1, "latent_embeds" (N, T, D) as
    they were fed back, "latent_lengths" (N,), how many of them exist, and "corrects" (N,).
    Raises UserError when the file is missing or damaged.
    """
    keys = ("input_ids", "answer_ids", "latent_embeds", "latent_lengths", "corrects")
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in keys}
    except (OSError, SafetensorError):
        raise UserError(f"{path}: missing or damaged; sample the pool again") from None


def append(folder, rank, records):
    """Appends finished records and hands them to the disk."""
    path = Path(folder) / (NAME if rank == 0 else _PARTS.replace("*", str(rank)))
    with path.open("ab") as stream:
        stream.write(_text(records).encode())
        stream.flush()
        os.fsync(stream.fileno())
