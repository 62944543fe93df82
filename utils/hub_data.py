"""Data sets that are named by their hub id, REPO:CONFIG:SPLIT or REPO:CONFIG:SPLIT:COLUMNS.

``openai/gsm8k:main:test`` is split test of configuration main. CONFIG may be empty, where a data
set has one configuration. COLUMNS, such as ``question=problem,answer=result,steps=solution``, says
which column holds what; by default the columns are question, answer and, if there is one, steps.
The paper's benchmarks are converted as src.prepare_data converts them, unless COLUMNS are given.
"""

import hashlib
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from utils.benchmarks import convert_rows, fetch, published_as
from utils.errors import UserError
from utils.rows import answer_as_text, fault_of, to_json

SYNTAX = "REPO:CONFIG:SPLIT[:question=COLUMN,answer=COLUMN,steps=COLUMN]"
_REPO = r"[\w.-]+(?:/[\w.-]+)?"
_ID = re.compile(rf"(?P<repo>{_REPO}):(?P<config>[\w.-]*):(?P<split>[\w.+-]+)(?::(?P<columns>.+))?")
_KEYS = ("question", "steps", "answer")


@dataclass(frozen=True)
class HubData:
    """What a hub id says. columns: {key of our rows: column}, empty where none is given."""

    repo: str
    config: str | None
    split: str
    columns: dict = field(default_factory=dict)

    @property
    def name(self):
        """The data set in names of folders and in tables, such as ``gsm8k-main-test``."""
        parts = (self.repo.rpartition("/")[2], self.config, self.split)
        return "-".join(part for part in parts if part)


def is_hub_id(data_path):
    """Whether a data path names a data set of the hub: it is no file, has two colons, and no folder
    after the first one, as ``runs/12:30:05/questions.json`` has."""
    if Path(data_path).exists():
        return False
    parts = str(data_path).split(":")
    return len(parts) >= 3 and "/" not in parts[1] + parts[2]


def parse_hub_id(data_path):
    """The HubData of a hub id. Raises UserError when it is not of the form SYNTAX."""
    match = _ID.fullmatch(data_path)
    if match is None:
        raise UserError(f"{data_path}: a data set of the hub is written {SYNTAX}")
    columns = {}
    for part in match["columns"].split(",") if match["columns"] else []:
        key, _, column = part.partition("=")
        if key not in _KEYS or not column or key in columns:
            fault = f"{part!r} must be question=COLUMN, answer=COLUMN or steps=COLUMN, each once"
            raise UserError(f"{data_path}: {fault}")
        columns[key] = column
    return HubData(match["repo"], match["config"] or None, match["split"], columns)


@lru_cache(maxsize=4)
def hub_rows(data_path):
    """The rows of a hub id in our form, a tuple. Raises UserError naming id, row and column.

    The library ``datasets`` fetches a data set once; several processes wait for each other's
    download by its file locks.
    """
    data = parse_hub_id(data_path)
    rows = fetch(
        data_path, data.repo, data.config, data.split,
        "check id and network (HF_HUB_OFFLINE), or give a file: python -m src.prepare_data",
    )  # fmt: skip
    converter, name = published_as(data.repo, data.config, data.split)
    if data.columns or converter is None:
        return tuple(_from_columns(rows, data.columns, data_path))
    return tuple(convert_rows(rows, converter, data_path, name))


@lru_cache(maxsize=4)
def hub_sha256(data_path):
    """Hex digest of the text that a data file of these rows has."""
    return hashlib.sha256(to_json(hub_rows(data_path)).encode()).hexdigest()


def _from_columns(rows, columns, data_path):
    """The rows of a data set whose columns hold question, answer and steps under some name."""
    if not len(rows):
        raise UserError(f"{data_path}: holds no row")
    column_of = {"question": "question", "steps": "steps", "answer": "answer"} | columns
    found = rows.column_names
    if "steps" not in columns and not ("steps" in found and isinstance(rows[0]["steps"], list)):
        del column_of["steps"]
    for key, column in column_of.items():
        if column not in found:
            fault = f"has no column {column} for the {key}, only {', '.join(found)}"
            raise UserError(f"{data_path}: {fault}; name it: {SYNTAX}")
    for number, row in enumerate(rows):
        new = {key: row[column_of[key]] if key in column_of else [] for key in _KEYS}
        answer_as_text(new)
        fault = fault_of(new)
        if fault:
            used = ", ".join(f"{key}={column}" for key, column in column_of.items())
            raise UserError(f"{data_path}: row {number}: {fault} (columns: {used})")
        yield new
