"""--data_path REPO:CONFIG:SPLIT: a data set of the hub as the questions of a run."""

import hashlib
import json

import pytest

from src.prepare_data import main as prepare_data
from src.runs.arguments import InferenceArguments
from src.runs.figure_data import steps_of
from src.runs.finished_runs import FinishedRun
from src.training.curriculum import make_source
from tests.commands import ROOT, assert_one_line_error, assert_success, command, run_here
from tests.conftest import raises_user_error
from utils import benchmarks
from utils.benchmarks import BENCHMARKS, convert
from utils.datasets import data_name, data_sha256, load_dataset
from utils.hub_data import hub_rows, hub_sha256
from utils.shards import Pool

datasets = pytest.importorskip("datasets")

RAW = ROOT.parent / "shared/data"
ID = "someone/problems::test"
NAMED = "someone/problems:hard:dev:question=problem,answer=the result,steps=solution"
TINY = json.loads((ROOT / "data/tiny_valid.json").read_text())[:6]
GSM = [
    {"question": f" How many {i}? ", "answer": f"<<{i}+1={i + 1}>>\n#### 1,00{i}"}
    for i in (1, 2, 3)
]


@pytest.fixture
def hub(monkeypatch):
    """{(repo, config, split): rows}, the hub of this test."""
    sets = {("someone/problems", None, "test"): TINY}

    def load(repo, config, split):
        if (repo, config, split) not in sets:
            raise ConnectionError(f"no\n{repo}")
        return datasets.Dataset.from_list(sets[repo, config, split])

    monkeypatch.setattr(datasets, "load_dataset", load)
    forget()
    yield sets
    forget()


def forget():
    """What another process does not know."""
    hub_rows.cache_clear()
    hub_sha256.cache_clear()


@pytest.mark.quick
def test_a_data_set_with_our_columns_is_taken_as_it_is(hub):
    assert load_dataset(ID) == TINY
    assert data_name(ID) == "problems-test"


@pytest.mark.quick
def test_columns_may_have_other_names_and_steps_may_be_missing(hub):
    rows = [
        {"problem": "One?", "the result": 1.0, "solution": ["<<0+1=1>>"], "steps": "none"},
        {"problem": "Two?", "the result": 2.5, "solution": [], "steps": "none"},
    ]
    hub["someone/problems", "hard", "dev"] = rows
    assert data_name(NAMED) == "problems-hard-dev"
    named = [row["steps"] for row in load_dataset(NAMED)]
    assert named == [["<<0+1=1>>"], []]
    without_steps = load_dataset(NAMED.rpartition(",")[0])
    assert [row["steps"] for row in without_steps] == [[], []]
    assert [row["answer"] for row in without_steps] == ["1", "2.5"]


@pytest.mark.quick
def test_a_benchmark_of_the_paper_has_the_rows_and_the_digest_of_its_file(
    hub, tmp_path, monkeypatch
):
    hub["openai/gsm8k", "main", "test"] = GSM
    small = {"gsm_test": BENCHMARKS["gsm_test"]._replace(rows=len(GSM))}
    monkeypatch.setattr(benchmarks, "BENCHMARKS", small)
    monkeypatch.setattr("src.prepare_data.BENCHMARKS", small)
    monkeypatch.setattr("sys.argv", ["prepare_data", "paper", "--output_dir", str(tmp_path)])
    prepare_data()
    path = tmp_path / "gsm_test.json"
    assert load_dataset("openai/gsm8k:main:test") == load_dataset(path)
    assert load_dataset(path)[0] == {
        "question": "How many 1?",
        "steps": ["<<1+1=2>>"],
        "answer": "1001",
    }
    assert data_sha256("openai/gsm8k:main:test") == data_sha256(path)
    assert data_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.quick
def test_only_a_benchmark_s_own_split_must_have_its_number_of_rows(hub):
    hub["openai/gsm8k", "main", "train"] = hub["openai/gsm8k", "main", "test"] = GSM
    assert len(load_dataset("openai/gsm8k:main:train")) == 3
    with raises_user_error("openai/gsm8k:main:test", "3 questions for gsm_test"):
        load_dataset("openai/gsm8k:main:test")


@pytest.mark.quick
@pytest.mark.skipif(not RAW.is_dir(), reason="needs the publishers' raw files")
def test_published_rows_of_the_hub_are_those_of_the_raw_files(hub):
    text = (RAW / "gsm8k_test.jsonl").read_text(encoding="utf-8")
    hub["openai/gsm8k", "main", "test"] = [json.loads(line) for line in text.splitlines()]
    assert load_dataset("openai/gsm8k:main:test") == convert("gsm_test", RAW)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("data_path", "parts"),
    [
        ("openai/gsm8k:main:", ("is written REPO:CONFIG:SPLIT",)),
        ("a/b/c:main:test", ("is written REPO:CONFIG:SPLIT",)),
        ("x:y:z:answers=b", ("'answers=b' must be question=COLUMN",)),
        ("x:y:z:answer=a,answer=b", ("each once",)),
        ("openai/none::test", ("can't be fetched", "ConnectionError: no openai/none", "check id")),
        ("someone/odd::test", ("no column question", "problem, answer", "question=COLUMN")),
        ("someone/odd::test:question=problem", ("row 1", "not 'many'", "question=problem")),
        ("someone/odd::test:question=answer", ('row 1: "answer" must be a number',)),
        ("someone/empty::test", ("holds no row",)),
        ("openai/gsm8k:main:train", ("row 0 is not as expected",)),
    ],
)
def test_a_faulty_hub_id_or_row_is_a_one_line_error(hub, data_path, parts):
    hub["someone/odd", None, "test"] = [
        {"problem": "One?", "answer": "1"},
        {"problem": "Two?", "answer": "many"},
    ]
    hub["someone/empty", None, "test"] = []
    hub["openai/gsm8k", "main", "train"] = [{"problem": "One?"}]
    with raises_user_error(data_path, *parts):
        load_dataset(data_path)


@pytest.mark.quick
def test_without_a_network_the_error_names_the_id_and_the_mend(tmp_path):
    flags = ("--data_path", "openai/gsm8k:main:test", "--output_dir", tmp_path / "run")
    result = run_here(command("infer_gpt2", *flags))
    assert_one_line_error(result, "openai/gsm8k:main:test can't be fetched", "prepare_data")
    assert not (tmp_path / "run").exists()


@pytest.mark.quick
def test_the_folder_of_a_run_is_named_after_the_data_set():
    name = InferenceArguments(data_path="openai/gsm8k:main:test", sampling_by="noise").run_name
    assert name.startswith("tiny-coconut-gsm8k-main-test-noise-0.8-n64-seed42-")
    assert ":" not in name and "/" not in name


def test_a_run_on_a_hub_data_set_is_that_on_the_file(hub, tmp_path):
    flags = ("--sampling_by", "noise", "--n_samples", 2, "--output_dir")
    path = tmp_path / "problems.json"
    path.write_text(json.dumps(TINY))
    for data, name in ((ID, "hub"), (path, "file")):
        line = command("infer_gpt2", "--data_path", data, *flags, tmp_path / name)
        assert_success(run_here(line))
    samples = [(tmp_path / name / "samples.jsonl").read_bytes() for name in ("hub", "file")]
    assert samples[0] == samples[1]
    run = FinishedRun(tmp_path / "hub")
    assert run.columns["benchmark"] == "problems-test"
    assert steps_of(run) == {i: len(row["steps"]) for i, row in enumerate(TINY)}


def test_a_run_goes_on_with_the_same_rows_only(hub, tmp_path):
    flags = ("--sampling_by", "noise", "--n_samples", 2, "--output_dir", tmp_path / "run")
    line = command("infer_gpt2", "--data_path", ID, *flags)
    assert_success(run_here(line))
    forget()
    assert "question/s" not in assert_success(run_here(line)).stderr  # nothing was left to do
    hub["someone/problems", None, "test"] = [TINY[1], *TINY[1:]]
    forget()
    assert_one_line_error(run_here(line), "another data_sha256")


def test_a_pool_of_a_hub_data_set_is_one_for_training(hub, tmp_path):
    flags = ("--sampling_by", "noise", "--n_samples", 4, "--n_samples_per_step", 0)
    place = ("--save_path", tmp_path, "--name", "pool")
    assert_success(run_here(command("annotate_data", "--data_path", ID, *flags, *place)))
    assert len(Pool(tmp_path / "pool")) > 0
    hub["someone/problems", None, "test"] = TINY[1:]
    forget()
    with raises_user_error("pool", f"made from {ID}", "annotate again"):
        Pool(tmp_path / "pool")


@pytest.mark.quick
def test_a_file_in_a_folder_with_colons_is_a_file(tmp_path):
    path = tmp_path / "12:30:05/problems.json"
    path.parent.mkdir()
    path.write_text(json.dumps(TINY))
    assert load_dataset(str(path)) == TINY
    assert data_name(str(path)) == "problems"


@pytest.mark.quick
def test_a_backbone_is_trained_on_a_hub_data_set(hub):
    assert len(make_source(ID, 1, None, [], lambda row: True)) == len(TINY)
