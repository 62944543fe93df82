"""python -m src.prepare_data paper: conversion, counts, sources."""

import json

import datasets
import pytest

from src import prepare_data
from tests.commands import ROOT, command, run_here
from tests.conftest import raises_user_error
from utils import benchmarks
from utils.benchmarks import BENCHMARKS, convert
from utils.datasets import load_dataset

pytestmark = pytest.mark.quick

RAW = ROOT.parent / "shared/data"
COUNTS = {"gsm_test": 2, "gsm_valid": 2, "gsm_train": 1, "gsm_hard": 2, "multiarith": 2}
GSM = [
    {
        "question": " How many? ",
        "answer": "He has <<2*3=6>>6 and\n<<6+1,000=1006>>1006.\n#### 1,006",
    },
    {"question": "No steps?", "answer": "#### -3"},
]
HARD = [
    {"input": "Large?", "code": "", "target": 9867630.0},
    {"input": "Part?", "code": "", "target": 0.5},
    {"input": "20% of 7871124 people think horse", "code": "", "target": 1.0},
]
MULTI = [
    {"input": "One?", "target": 1},
    {"input": "Two?", "target": 2},
    {"input": "One?", "target": 1},
]
AUG = [{"question": "How?", "steps": ["<<1+1=2>>"], "answer": "2"}]


@pytest.fixture
def small_benchmarks(monkeypatch):
    """The benchmarks expect the numbers of rows above."""
    counted = {name: (COUNTS[name], *rest[1:]) for name, rest in BENCHMARKS.items()}
    monkeypatch.setattr(benchmarks, "BENCHMARKS", counted)
    monkeypatch.setattr(prepare_data, "BENCHMARKS", counted)


@pytest.fixture
def source(tmp_path, small_benchmarks):
    """A folder of small raw files."""
    folder = tmp_path / "raw"
    folder.mkdir()
    files = {
        "gsm8k_test": GSM,
        "gsm8k_train": [*GSM, *GSM],
        "gsmhardv2": HARD,
        "multiarith": MULTI,
        "gsm8k_aug_train": AUG,
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "gsm8k_aug_valid_indices.json").write_text("[3, 0]")
    return folder


def test_raw_rows_become_questions_steps_and_answers(source):
    gsm_test = convert("gsm_test", source)
    assert gsm_test[0] == {
        "question": "How many?",
        "steps": ["<<2*3=6>>", "<<6+1,000=1006>>"],
        "answer": "1006",
    }
    assert gsm_test[1] == {"question": "No steps?", "steps": [], "answer": "-3"}
    assert [row["question"] for row in convert("gsm_valid", source)] == ["No steps?", "How many?"]
    assert [row["answer"] for row in convert("gsm_hard", source)] == ["9867630", "0.5"]
    assert [row["question"] for row in convert("multiarith", source)] == ["One?", "Two?"]
    assert convert("gsm_train", source) == AUG


def test_the_plain_training_set_is_gsm8k_without_the_validation_rows(source, tmp_path, monkeypatch):
    for module in (benchmarks, prepare_data):
        monkeypatch.setattr(module, "PLAIN_TRAIN", 2)
    flags = ("--source", str(source), "--output_dir", str(tmp_path), "--train", "gsm8k")
    monkeypatch.setattr("sys.argv", ["prepare_data", "paper", *flags])
    prepare_data.main()
    train = load_dataset(tmp_path / "gsm_train.json")
    assert [row["question"] for row in train] == ["No steps?", "How many?"]  # rows 1 and 2


def test_hub_and_raw_files_give_the_same_rows(source, monkeypatch):
    multi = [{"question": row["input"], "final_ans": str(row["target"])} for row in MULTI]
    sets = {
        ("openai/gsm8k", "main", "test"): GSM,
        ("whynlp/gsm8k-aug", None, "train"): AUG,
        ("reasoning-machines/gsm-hard", None, "train"): HARD,
        ("ChilleD/MultiArith", None, "train+test"): multi,
    }

    def load_from_hub(name, config, split):
        return datasets.Dataset.from_list(sets[name, config, split])

    monkeypatch.setattr(datasets, "load_dataset", load_from_hub)
    for name in ("gsm_test", "gsm_train", "gsm_hard", "multiarith"):
        assert convert(name) == convert(name, source)


def test_written_files_are_data_files_and_are_not_written_again(
    source, tmp_path, monkeypatch, capsys
):
    flags = ("--source", str(source), "--output_dir", str(tmp_path / "data"), "--train")
    monkeypatch.setattr("sys.argv", ["prepare_data", "paper", *flags])
    prepare_data.main()
    for name, count in COUNTS.items():
        assert len(load_dataset(tmp_path / "data" / f"{name}.json")) == count
    prepare_data.main()
    assert capsys.readouterr().out.count("is there") == 5
    path = tmp_path / "data/gsm_test.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:1]))
    with pytest.raises(SystemExit):
        prepare_data.main()
    assert "holds 1 questions, not 2; remove it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("gsm8k_test.jsonl", '{"question": "x"', "line 1 is not valid JSON"),
        ("gsm8k_test.jsonl", '{"question": "x", "answer": "#### 1"}', "gives 1 questions"),
        ("gsm8k_test.jsonl", '{"quest": "x"}', "row 0 is not as expected"),
        ("gsm8k_test.jsonl", None, "can't be read"),
        ("gsm8k_aug_valid_indices.json", "[99]", "names rows that"),
    ],
)
def test_a_faulty_raw_file_is_a_one_line_error_that_names_it(source, file, content, message):
    (source / file).unlink()
    if content is not None:
        (source / file).write_text(content)
    with raises_user_error(file, match=message):
        convert("gsm_valid" if "indices" in file else "gsm_test", source)


def test_without_a_network_the_error_names_the_flag_for_raw_files(tmp_path):
    result = run_here(command("prepare_data", "paper", "--output_dir", tmp_path))
    assert result.returncode == 2
    assert "--source" in result.stderr.splitlines()[-1]


@pytest.mark.skipif(not RAW.is_dir(), reason="needs the publishers' raw files")
@pytest.mark.parametrize("name", ["gsm_test", "gsm_valid", "gsm_hard", "multiarith"])
def test_the_publishers_raw_files_convert(name):
    rows = convert(name, RAW)
    assert len(rows) == BENCHMARKS[name][0]
    assert all(row["question"] and float(row["answer"]) is not None for row in rows)
