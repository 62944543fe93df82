"""Data sets: JSON lists of {"question", "steps", "answer"}."""

import json
from pathlib import Path

from utils.answers import format_number, parse_number
from utils.errors import UserError


def load_dataset(path):
    """The rows of a data file: dicts with "question" (str), "steps" (list of str), "answer" (str).

    Raises UserError that names file, row (counted from 0), fault and mend.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: no such data file; the shipped ones are data/tiny_*.json "
            "(`python -m src.prepare_data tiny` makes them)"
        )
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        fault = f"{path}: not valid JSON ({error})"
        raise UserError(f"{fault}; is the file cut off? Fetch it again") from None
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: must be a non-empty JSON list of questions")
    for i, row in enumerate(rows):
        _answer_as_text(row)
        fault = fault_of(row)
        if fault:
            raise UserError(f"{path}: row {i}: {fault}")
    return rows


def _answer_as_text(row):
    """A file may hold the answer as a number, 17 or "17"."""
    answer = row.get("answer") if isinstance(row, dict) else None
    if type(answer) in (int, float) and parse_number(str(answer)) is not None:
        row["answer"] = format_number(answer)


def fault_of(row):
    """What is wrong with a row, with its mend, or None."""
    if not isinstance(row, dict):
        return 'must be an object {"question", "steps", "answer"}'
    for key in ("question", "steps", "answer"):
        if key not in row:
            return f'has no "{key}"; add it or drop the row'
    if not isinstance(row["question"], str) or not row["question"].strip():
        return '"question" must be a non-empty string'
    if not isinstance(row["steps"], list) or not all(isinstance(s, str) for s in row["steps"]):
        return '"steps" must be a list of strings such as "<<1+2=3>>"'
    if not isinstance(row["answer"], str) or parse_number(row["answer"]) is None:
        return f'"answer" must be a number, such as 17 or "17", not {row["answer"]!r}'
    return None
