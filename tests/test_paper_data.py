"""python -m src.prepare_data paper: conversion, counts, sources."""

import json

import pytest

from src import prepare_data
from tests.commands import ROOT, command, run_here
from tests.conftest import raises_user_error
from utils import benchmarks
from utils.benchmarks import BENCHMARKS, PLAIN_TRAIN, convert, plain_train
from utils.datasets import load_dataset

datasets = pytest.importorskip("datasets")

pytestmark = pytest.mark.quick

MEASURED = {"svamp": 0, "gsm_plus": 161, "gsm_hard": 302, "gsm_test": 0}
RAW = ROOT.parent / "shared/data"
COUNTS = {
    "gsm_test": 2, "gsm_valid": 2, "gsm_train": 1, "gsm_hard": 2, "multiarith": 2,
    "svamp": 3, "gsm_plus": 6, "asdiv_a": 3,
}  # fmt: skip
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
SVAMP = [
    {
        "ID": f"chal-{number}",
        "Body": "If each pack costs 8 dollars",
        "Question": "How?",
        "Answer": x,
    }
    for number, x in ((1, 51.0), (2, 3.0), (10, 0.0))
]
PLUS = [
    {"question": f"Which\n{k}  of them? ", "answer": answer, "perturbation_type": kind}
    for k, (answer, kind) in enumerate(
        [
            ("18", "adding operation"),
            ("None", "critical thinking"),
            ("4.33", "numerical substitution"),
            ("1/3", "reversing operation"),
            ("5/8", "reversing operation"),
            ("1/10", "distraction insertion"),
            ("1,250.5", "digit expansion"),
        ]
    )
]
ASDIV = [
    {"body": "Seven apples are red.", "question": "How many?", "answer": "9 (apples)"},
    {"body": "Two dogs sleep.", "question": "Which is older?", "answer": "Rex"},
    {"body": "If a stamp costs $0.34,", "question": "how much are 4? ", "answer": "1.36 (dollars)"},
    {"body": "What is left?", "question": "Say it.", "answer": "0"},
]
CALC_ASDIV = [
    {"id": "asdiv_a__nluds-0001", "question": "Seven apples are red. How many?"},
    {"id": "asdiv_a__nluds-0003", "question": "If a stamp costs $0.34,, how much are 4?"},
    {"id": "asdiv_a__nluds-0004", "question": "What is left?, say it."},
]


@pytest.fixture
def small_benchmarks(monkeypatch):
    """The benchmarks expect the numbers of rows above."""
    counted = {name: of._replace(rows=COUNTS[name]) for name, of in BENCHMARKS.items()}
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
        "gsmplus_testmini": PLUS,
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "svamp.json").write_text(json.dumps(SVAMP, indent=1))
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


def test_the_further_benchmarks_convert(source):
    rows = convert("svamp", source)
    assert [row["answer"] for row in rows] == ["51", "3", "0"]
    question = "If each pack costs 8 dollars How?"
    assert rows[0] == {"question": question, "steps": [], "answer": "51"}
    rows = convert("gsm_plus", source)
    answers = ["18", "4.33", "0.33", "0.625", "0.1", "1250.5"]
    assert [row["answer"] for row in rows] == answers
    assert rows[1]["question"] == "Which 2 of them?"


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
        ("ChilleD/SVAMP", None, "train+test"): [
            row | {"Answer": str(row["Answer"])} for row in (SVAMP[2], SVAMP[0], SVAMP[1])
        ],
        ("qintongli/GSM-Plus", None, "testmini"): PLUS,
    }
    use_hub(monkeypatch, sets)
    for name in ("gsm_test", "gsm_train", "gsm_hard", "multiarith", "svamp", "gsm_plus"):
        assert convert(name) == convert(name, source)


def use_hub(monkeypatch, sets):
    """The hub has these data sets, {(id, configuration, split): rows}."""

    def load_from_hub(name, config, split):
        return datasets.Dataset.from_list(sets[name, config, split])

    monkeypatch.setattr(datasets, "load_dataset", load_from_hub)
    benchmarks._asdiv.cache_clear()


def test_asdiv_a_has_the_problems_of_one_hub_set_and_the_text_of_another(
    small_benchmarks, monkeypatch
):
    chosen, problems = (
        ("MU-NLPC/Calc-asdiv_a", None, "test"),
        ("EleutherAI/asdiv", None, "validation"),
    )
    use_hub(monkeypatch, {chosen: CALC_ASDIV, problems: ASDIV})
    rows = convert("asdiv_a")
    assert [row["answer"] for row in rows] == ["9", "1.36", "0"]
    assert rows[1]["question"] == "If a stamp costs $0.34, how much are 4?"
    assert load_dataset("MU-NLPC/Calc-asdiv_a::test") == rows
    for problems_there, fault in ((ASDIV[1:], "not problem 1 of"), (ASDIV[:1], "IndexError")):
        use_hub(monkeypatch, {chosen: CALC_ASDIV, problems: problems_there})
        with raises_user_error("Calc-asdiv_a (test): row", match=fault):
            convert("asdiv_a")
    use_hub(monkeypatch, {chosen: CALC_ASDIV})
    with raises_user_error("asdiv_a: EleutherAI/asdiv can't be fetched", match="check the network"):
        convert("asdiv_a")


def test_written_files_are_data_files_and_are_not_written_again(
    source, tmp_path, monkeypatch, capsys
):
    flags = ("--source", str(source), "--output_dir", str(tmp_path / "data"), "--train")
    monkeypatch.setattr("sys.argv", ["prepare_data", "paper", *flags])
    prepare_data.main()
    for name, count in COUNTS.items():
        if name == "asdiv_a":  # on the hub only
            assert not (tmp_path / "data/asdiv_a.json").exists()
            continue
        assert len(load_dataset(tmp_path / "data" / f"{name}.json")) == count
    prepare_data.main()
    output = capsys.readouterr().out
    assert output.count("is there") == 7
    assert output.count("asdiv_a.json: left out, it comes from the hub only") == 2
    path = tmp_path / "data/gsm_test.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:1]))
    with pytest.raises(SystemExit):
        prepare_data.main()
    assert "holds 1 questions, not 2; remove it" in capsys.readouterr().err


MADE_FROM = {"indices": "gsm_valid", "svamp": "svamp", "gsmplus": "gsm_plus"}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("gsm8k_test.jsonl", '{"question": "x"', "line 1 is not valid JSON"),
        ("gsm8k_test.jsonl", '{"question": "x", "answer": "#### 1"}', "gives 1 questions"),
        ("gsm8k_test.jsonl", '{"quest": "x"}', "row 0 is not as expected"),
        ("gsm8k_test.jsonl", None, "can't be read"),
        ("gsm8k_aug_valid_indices.json", "[99]", "names rows that"),
        ("gsm8k_aug_valid_indices.json", "7", "names rows that"),
        ("svamp.json", '{"Body": "x"}', "must be a JSON list"),
        ("svamp.json", '[{"Body": "x"}]', "row 0 is not as expected"),
        ("gsmplus_testmini.jsonl", json.dumps(PLUS[0] | {"answer": "1/0"}), "row 0 is not as exp"),
        ("gsmplus_testmini.jsonl", json.dumps(PLUS[0] | {"answer": "$5"}), "must be a number"),
    ],
)
def test_a_faulty_raw_file_is_a_one_line_error_that_names_it(source, file, content, message):
    (source / file).unlink()
    if content is not None:
        (source / file).write_text(content)
    with raises_user_error(file, match=message):
        convert(
            next((name for part, name in MADE_FROM.items() if part in file), "gsm_test"), source
        )


def test_without_a_network_the_error_names_the_flag_for_raw_files(tmp_path):
    result = run_here(command("prepare_data", "paper", "--output_dir", tmp_path))
    assert result.returncode == 2
    assert "--source" in result.stderr.splitlines()[-1]


@pytest.mark.skipif(not RAW.is_dir(), reason="needs the publishers' raw files")
@pytest.mark.parametrize("name", sorted(set(COUNTS) - {"gsm_train", "asdiv_a"}))
def test_the_publishers_raw_files_convert(name):
    rows = convert(name, RAW)
    assert len(rows) == BENCHMARKS[name].rows
    assert all(row["question"] and float(row["answer"]) is not None for row in rows)


@pytest.mark.skipif(not RAW.is_dir(), reason="needs the publishers' raw files")
def test_answers_with_decimals_are_as_many_as_in_the_publishers_files():
    decimals = {
        name: sum(not float(row["answer"]).is_integer() for row in convert(name, RAW))
        for name in MEASURED
    }
    assert decimals == MEASURED
    train, valid = plain_train(RAW), convert("gsm_valid", RAW)
    assert len(train) == PLAIN_TRAIN
    assert not {row["question"] for row in train} & {row["question"] for row in valid}
