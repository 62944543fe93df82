"""samples.jsonl: a line a question, appended as it finishes, shared by several processes.

While a run goes on, process 0 appends to samples.jsonl and process r to samples.rank<r>.jsonl. At a
start the parts of an interrupted run are gathered; at the end all lines are put in order.
"""

import json
import os
from pathlib import Path

from utils.errors import UserError
from utils.files import write_text

NAME = "samples.jsonl"


def _part(folder, rank):
    return folder / (NAME if rank == 0 else f"samples.rank{rank}.jsonl")


def _text(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _lines(path):
    """The whole records of a file; a last line that an interruption cut off is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is a torn line
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            raise UserError(f"{path}: line {number} is damaged; remove the line and run again") from None


def gather(folder):
    """Joins the parts of an earlier run into samples.jsonl, in order; {idx: record}."""
    folder = Path(folder)
    parts = sorted(folder.glob("samples*.jsonl"))
    records = {record["idx"]: record for part in parts for record in _lines(part)}
    ordered = _text(records[idx] for idx in sorted(records))
    main = folder / NAME
    if parts and not (main.exists() and main.read_text(encoding="utf-8") == ordered):
        write_text(main, ordered)
    for part in parts:
        if part.name != NAME:
            part.unlink()
    return records


def read(folder):
    """{idx: record} of a gathered run."""
    path = Path(folder) / NAME
    return {record["idx"]: record for record in _lines(path)} if path.exists() else {}


def append(folder, rank, records):
    """Appends finished records and hands them to the disk."""
    with _part(Path(folder), rank).open("a", encoding="utf-8") as stream:
        stream.write(_text(records))
        stream.flush()
        os.fsync(stream.fileno())
