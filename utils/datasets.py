"""Data sets: files, JSON lists of {"question", "steps", "answer"}, or data sets of the hub.

A data path names a file, or a data set of the hub (utils.hub_data).
"""

import json
from pathlib import Path

from utils.errors import UserError
from utils.files import sha256
from utils.hub_data import hub_rows, hub_sha256, is_hub_id, parse_hub_id
from utils.rows import answer_as_text, fault_of


def load_dataset(path):
    """The rows of a data path: dicts with "question" (str), "steps" (list of str), "answer" (str).

    Raises UserError that names file or hub id, row (counted from 0), fault and mend.
    """
    return list(hub_rows(str(path))) if is_hub_id(path) else _read_file(Path(path))


def data_sha256(path):
    """Hex digest of a data path: of the file, or of the text that a file of the hub's rows has.

    Thus a benchmark of the hub has the digest of its file by src.prepare_data.
    """
    return hub_sha256(str(path)) if is_hub_id(path) else sha256([path])


def data_name(path):
    """The name of a data path in names of folders and in tables."""
    return parse_hub_id(path).name if is_hub_id(path) else Path(path).stem


def _read_file(path):
    if not path.is_file():
        raise UserError(
            f"{path}: no such data file; the shipped ones are data/tiny_*.json "
            "(`python -m src.prepare_data tiny` makes them); a data set of the hub is written "
            "REPO:CONFIG:SPLIT"
        )
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        fault = f"{path}: not valid JSON ({error})"
        raise UserError(f"{fault}; is the file cut off? Fetch it again") from None
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: must be a non-empty JSON list of questions")
    for i, row in enumerate(rows):
        answer_as_text(row)
        fault = fault_of(row)
        if fault:
            raise UserError(f"{path}: row {i}: {fault}")
    return rows
