"""The tiny benchmark, and data files that are not as they should be."""

import collections
import json
import operator
import re
from pathlib import Path

import pytest

from src.models import BACKBONES
from src.models.coconut import COCONUT
from src.models.tokenizers import build_tokenizer
from src.prepare_data import TINY_SIZES, write_tiny
from tests.conftest import raises_user_error
from utils.datasets import load_dataset
from utils.tiny_problems import TEMPLATES, make_problem

pytestmark = pytest.mark.quick

DATA = Path(__file__).parents[1] / "data"
OPERATIONS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
SPLITS = {name: load_dataset(DATA / f"tiny_{name}.json") for name in TINY_SIZES}


def test_prepare_data_regenerates_the_shipped_files_and_draws_other_problems(tmp_path):
    write_tiny(tmp_path, 30, 20)
    for name in TINY_SIZES:
        file = f"tiny_{name}.json"
        assert (tmp_path / file).read_bytes() == (DATA / file).read_bytes()
    held_out = {row["question"] for rows in SPLITS.values() for row in rows}
    others = {"train": 30, "further_test": 20, "further_multi": 20, "further_hard": 20}
    for name, size in others.items():
        questions = {row["question"] for row in load_dataset(tmp_path / f"tiny_{name}.json")}
        assert len(questions) == size
        assert not held_out & questions
        held_out |= questions


def test_splits_have_their_sizes_and_no_question_occurs_twice():
    assert {name: len(rows) for name, rows in SPLITS.items()} == TINY_SIZES
    questions = [row["question"] for rows in SPLITS.values() for row in rows]
    assert len(set(questions)) == len(questions)
    assert len(TEMPLATES) >= 40


@pytest.mark.parametrize("name", ["test", "valid"])
def test_splits_mix_problems_of_one_to_four_steps(name):
    counts = collections.Counter(len(row["steps"]) for row in SPLITS[name])
    for steps, share in {1: 0.10, 2: 0.35, 3: 0.40, 4: 0.15}.items():
        assert abs(counts[steps] / len(SPLITS[name]) - share) < 0.05


def test_tiny_multi_has_two_steps_and_tiny_hard_large_numbers():
    assert {len(row["steps"]) for row in SPLITS["multi"]} == {2}
    assert {len(row["steps"]) for row in SPLITS["hard"]} == {3, 4}
    largest = [max(map(int, re.findall(r"\d+", " ".join(row["steps"])))) for row in SPLITS["hard"]]
    assert min(largest) >= 200


@pytest.mark.parametrize("name", TINY_SIZES)
def test_steps_compute_the_answer_from_the_numbers_of_the_question(name):
    for row in SPLITS[name]:
        known = set(re.findall(r"\d+", row["question"]))
        for step in row["steps"]:
            x, op, y, result = re.fullmatch(r"<<(\d+)([-+*/])(\d+)=(\d+)>>", step).groups()
            assert OPERATIONS[op](int(x), int(y)) == int(result)
            assert {x, y} <= known
            known.add(result)
        assert row["answer"] == result


def test_a_problem_depends_on_its_split_seed_and_number_only():
    assert make_problem("train", 1, 5) == make_problem("train", 1, 5)
    assert make_problem("train", 1, 5) != make_problem("train", 1, 6)
    assert make_problem("train", 1, 5) != make_problem("train", 2, 5)


@pytest.mark.parametrize("name", BACKBONES)
def test_tokenizers_know_every_word_and_write_parsable_answers(name):
    backbone = BACKBONES[name]
    tokenizer = build_tokenizer(backbone)
    for row in SPLITS["test"] + SPLITS["hard"]:
        answer = backbone.format_answer(row["answer"])
        texts = [backbone.format_prompt(row["question"]), *row["steps"], answer]
        assert tokenizer.unk_token_id not in tokenizer(" ".join(texts))["input_ids"]
        written = tokenizer.decode(tokenizer(answer)["input_ids"], skip_special_tokens=True)
        assert backbone.parse_answer(written) == float(row["answer"])
    tokenizer = build_tokenizer(COCONUT)
    assert tokenizer.decode(tokenizer("### 1782 -3")["input_ids"]) == "### 1782 - 3"


GOOD = {"question": "How many?", "steps": ["<<1+1=2>>"], "answer": "2"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps([GOOD, GOOD])[:60], "not valid JSON"),
        (json.dumps([]), "non-empty JSON list"),
        (json.dumps({"a": 1}), "non-empty JSON list"),
        (json.dumps([GOOD, {"question": "x", "steps": []}]), 'row 1: has no "answer"'),
        (json.dumps([GOOD, GOOD | {"answer": True}]), 'row 1: "answer" must be a number'),
        (json.dumps([GOOD, GOOD | {"answer": float("nan")}]), 'row 1: "answer" must be a number'),
        ('[{"answer": ' + "9" * 5000 + "}]", "not valid JSON"),
        (json.dumps([GOOD | {"answer": "two"}]), "row 0.*must be a number, such as 17"),
        (json.dumps([GOOD | {"question": " "}]), "row 0.*non-empty string"),
        (json.dumps([GOOD | {"steps": "<<1+1=2>>"}]), "row 0.*list of strings"),
        (json.dumps([GOOD, 3]), "row 1: must be an object"),
    ],
)
def test_a_faulty_data_file_is_a_one_line_error_that_names_file_and_row(tmp_path, content, message):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with raises_user_error(match=rf"^{re.escape(str(path))}.*{message}"):
        load_dataset(path)


@pytest.mark.parametrize(("answer", "text"), [(17, "17"), (17.0, "17"), (2.5, "2.5"), (-3, "-3")])
def test_answers_of_data_files_may_be_numbers(tmp_path, answer, text):
    (tmp_path / "x.json").write_text(json.dumps([GOOD | {"answer": answer}]))
    assert load_dataset(tmp_path / "x.json")[0]["answer"] == text


def test_a_missing_data_file_names_the_command_that_writes_it(tmp_path):
    with raises_user_error("prepare_data tiny"):
        load_dataset(tmp_path / "none.json")
