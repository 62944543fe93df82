"""The benchmarks: from the publishers' rows to ours (question, steps, answer), counted.

Rows come from the hub's data sets or from raw files of the publishers; the rules are the same.
"""

import json
import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from utils.answers import format_number
from utils.errors import UserError
from utils.rows import fault_of

_ASDIV = "EleutherAI/asdiv"  # all 2305 problems of ASDiv
_NETWORK = "check the network (HF_HUB_OFFLINE)"
_MALFORMED = "20% of 7871124 people think horse"  # the one malformed row of GSM-Hard


def gsm8k(row):
    """GSM8K: the steps are the ``<<..>>`` of the worked answer, the number follows ``####``."""
    if "steps" in row:  # GSM8K-Aug has them apart
        return _row(row["question"], list(row["steps"]), str(row["answer"]))
    worked, _, answer = row["answer"].rpartition("####")
    return _row(row["question"], re.findall(r"<<.*?>>", worked), answer)


def gsm_hard(row):
    """GSM-Hard: numbers of GSM8K made large; no steps. None for the malformed row."""
    if _MALFORMED in row["input"]:
        return None
    return _row(row["input"], [], format_number(row["target"]))


def multiarith(row):
    """MultiArith, by the names of the hub or of the raw file; no steps. It has exact repeats."""
    question = row["question"] if "question" in row else row["input"]
    answer = row["final_ans"] if "final_ans" in row else row["target"]
    new = _row(question, [], format_number(answer))
    return new | {"key": new["question"]}


def svamp(row):
    """SVAMP; no steps. The hub's two splits mix its problems, chal-1 .. chal-1000."""
    new = _row(_joined(row["Body"], row["Question"]), [], format_number(row["Answer"]))
    return new | {"key": int(row["ID"].rpartition("-")[2])}


def gsm_plus(row):
    """GSM-Plus; no steps. None for critical thinking: these problems have no answer."""
    if row["perturbation_type"] == "critical thinking":
        return None
    return _row(" ".join(row["question"].split()), [], _as_decimal(row["answer"]))


def _as_decimal(answer):
    """A fraction as a number, 0.625 for 5/8; with two decimals, as the set's other answers, where
    it has no end: 0.33 for 1/3."""
    if "/" not in answer:
        return answer
    value = Fraction(answer)
    ends = 10**6 % value.denominator == 0
    return format_number(value if ends else round(value, 2))


def asdiv_a(row):
    """ASDiv-A; no steps.

    The row is one of Calc-asdiv_a, which says which problems of ASDiv belong to ASDiv-A. It joins
    body and question in another way, so the text and the answer are those of ASDiv itself, whose
    hub data set has the problems nluds-0001, nluds-0002 .. in this order, without ids.
    """
    number = int(row["id"].rpartition("nluds-")[2])
    problem = _asdiv()[number - 1]
    if not row["question"].strip().startswith(problem["body"].strip()[:20]):
        raise ValueError(f"not problem {number} of {_ASDIV}")
    answer = problem["answer"].partition("(")[0]  # 9 (apples)
    return _row(_joined(problem["body"], problem["question"]), [], answer)


@lru_cache(maxsize=1)
def _asdiv():
    return fetch(f"asdiv_a: {_ASDIV}", _ASDIV, None, "validation", _NETWORK)


def _joined(body, question):
    return f"{body.strip()} {question.strip()}"


def _row(question, steps, answer):
    return {"question": question.strip(), "steps": steps, "answer": answer.replace(",", "").strip()}


class Benchmark(NamedTuple):
    """What a benchmark is made from, by the hub or by the publisher's raw file."""

    rows: int  # that it must have
    hub: str  # data set
    config: str | None  # of the data set
    split: str  # or several, joined by +
    raw: str | None  # name of the file; None: from the hub only
    converter: Callable  # from a publisher's row to ours


BENCHMARKS = {
    "gsm_test": Benchmark(1319, "openai/gsm8k", "main", "test", "gsm8k_test.jsonl", gsm8k),
    "gsm_valid": Benchmark(500, "whynlp/gsm8k-aug", None, "validation", "gsm8k_train.jsonl", gsm8k),
    "gsm_train": Benchmark(
        385_620, "whynlp/gsm8k-aug", None, "train", "gsm8k_aug_train.jsonl", gsm8k
    ),
    "gsm_hard": Benchmark(
        1318, "reasoning-machines/gsm-hard", None, "train", "gsmhardv2.jsonl", gsm_hard
    ),
    "multiarith": Benchmark(
        580, "ChilleD/MultiArith", None, "train+test", "multiarith.jsonl", multiarith
    ),
    "svamp": Benchmark(1000, "ChilleD/SVAMP", None, "train+test", "svamp.json", svamp),
    "gsm_plus": Benchmark(
        2100, "qintongli/GSM-Plus", None, "testmini", "gsmplus_testmini.jsonl", gsm_plus
    ),
    "asdiv_a": Benchmark(1218, "MU-NLPC/Calc-asdiv_a", None, "test", None, asdiv_a),
}
_CHOSEN = {"gsm_valid": "gsm8k_aug_valid_indices.json"}  # which rows of the raw file
PLAIN_TRAIN = 6973  # gsm_train of GSM8K itself: its 7473 rows without those of gsm_valid


def plain_train(source):
    """gsm_train without GSM8K-Aug: the rows of gsm8k_train.jsonl that gsm_valid does not have.

    source: the folder of raw files. Raises UserError as ``convert`` does.
    """
    path = Path(source) / BENCHMARKS["gsm_valid"].raw
    rows = _read_rows(path)
    valid = set(_chosen("gsm_valid", path, rows))
    rows = [row for number, row in enumerate(rows) if number not in valid]
    return convert_rows(rows, gsm8k, str(path), "gsm_train", PLAIN_TRAIN)


def convert(name, source=None):
    """The rows of benchmark ``name`` from the raw files in folder ``source``, or else from the hub.

    A benchmark without a raw file comes from the hub only.
    Raises UserError when they can't be had, can't be read, or are not as many as they should be.
    """
    _, hub, config, split, raw, converter = BENCHMARKS[name]
    if source is not None:
        path = Path(source) / raw
        rows = _read_rows(path)
        if name in _CHOSEN:
            rows = [rows[number] for number in _chosen(name, path, rows)]
        return convert_rows(rows, converter, str(path), name)
    mend = "give a folder with the raw files by --source" if raw else _NETWORK
    rows = fetch(f"{name}: {hub}", hub, config, split, mend)
    return convert_rows(rows, converter, f"{hub} ({split})", name)


def has_raw_file(name):
    """Whether a benchmark can be made without the hub."""
    return BENCHMARKS[name].raw is not None


def published_as(hub, config, split):
    """The converter of a hub data set, and the benchmark that this split of it is; or None each."""
    converters = {of.hub: of.converter for of in BENCHMARKS.values()}
    names = {(of.hub, of.config, of.split): name for name, of in BENCHMARKS.items()}
    return converters.get(hub), names.get((hub, config, split))


def convert_rows(rows, converter, where, name=None, wanted=None):
    """The publisher's rows in our form, without malformed and repeated ones.

    A converter gives None for a row that does not belong, and a "key" where rows are told apart by
    something else than their number: of rows with one key the first stays.
    where: the source, for messages. name: the benchmark that they must be, if any. wanted: its
    number of questions, by default that of BENCHMARKS.
    Raises UserError when a row is not as expected, or when they are too few or too many.
    """
    converted = {}
    for number, row in enumerate(rows):
        new = _converted(row, converter, f"{where}: row {number}")
        if new is None:
            continue
        converted.setdefault(new.pop("key", number), new)
    if name is not None and wanted is None:
        wanted = BENCHMARKS[name].rows
    if wanted is not None and len(converted) != wanted:
        raise UserError(
            f"{where}: gives {len(converted)} questions for {name}, it should be {wanted}: the "
            "source is cut off or has changed"
        )
    order = sorted(converted) if converter is svamp else converted
    return [converted[key] for key in order]


def _converted(row, converter, where):
    """A publisher's row in our form, or None. Raises UserError when it is not as expected."""
    try:
        new = converter(row)
    except (LookupError, ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"{where} is not as expected ({error!r})") from None
    fault = new and fault_of(new)
    if fault:
        raise UserError(f"{where}: {fault}")
    return new


def fetch(given, hub, config, split, mend):
    """The rows of a hub data set, a datasets.Dataset. Raises UserError with ``given`` and mend."""
    from datasets import load_dataset  # takes seconds to import

    try:
        return load_dataset(hub, config, split=split)
    except Exception as error:  # the hub's errors share no base class
        reason = " ".join(str(error).split())[:120]
        fault = f"can't be fetched from the hub ({type(error).__name__}: {reason})"
        raise UserError(f"{given} {fault}; {mend}") from None


def _read_rows(path):
    """The rows of a raw file: a JSON list, or JSON lines."""
    if path.suffix == ".json":
        rows = _parsed(path, "".join(_lines(path)), 0)
        if not isinstance(rows, list):
            raise UserError(f"{path}: must be a JSON list of problems")
        return rows
    return [_parsed(path, line, k) for k, line in enumerate(_lines(path))]


def _chosen(name, raw, rows):
    """Which of the raw file's rows are benchmark ``name``, numbers from 0."""
    path = raw.parent / _CHOSEN[name]
    numbers = _parsed(path, "".join(_lines(path)), 0)
    if not isinstance(numbers, list) or not set(numbers) <= set(range(len(rows))):
        raise UserError(f"{path}: names rows that {raw.name} does not have")
    return numbers


def _lines(path):
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        fault = f"{path}: can't be read ({reason})"
        raise UserError(f"{fault}; --source names the folder of raw files") from None


def _parsed(path, text, number):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        fault = f"{path}: line {number + 1} is not valid JSON ({error.msg})"
        raise UserError(f"{fault}; is it cut off?") from None
