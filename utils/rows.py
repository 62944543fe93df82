"""A row of a data set in our form, {"question", "steps", "answer"}: its faults and its text."""

import json

from utils.answers import format_number, parse_number


def answer_as_text(row):
    """Writes a row's answer as text, where a data set holds a number, 17 instead of "17"."""
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


def to_json(rows):
    """A JSON list, a row a line: the text of a data file."""
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"
