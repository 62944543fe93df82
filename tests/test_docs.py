"""README and docs: short, their links and commands exist, their numbers are those of the csv."""

import ast
import csv
import re
from collections import Counter
from functools import cache

import pytest
import yaml

from tests.commands import ROOT

pytestmark = pytest.mark.quick

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
WRITTEN = [page for page in PAGES if page.name not in ("flags.md", "log.md")]
# README's rows: the file of docs/results and the values that pick the row
BENCHMARK = {"benchmark": "tiny_test", "model": "tiny-coconut"}
AT_64 = BENCHMARK | {"N": "64"}
RESULTS = {
    "greedy, one trajectory": ("tts_greedy.csv", BENCHMARK),
    "majority vote": ("tts_coconut.csv", AT_64 | {"method": "majority"}),
    "best-of-N by LatentRM": ("tts_coconut.csv", AT_64 | {"method": "best_of_n"}),
    "weighted vote by LatentRM": ("tts_coconut.csv", AT_64 | {"method": "weighted_vote"}),
    "coverage: any trajectory is right": ("tts_coconut.csv", AT_64 | {"method": "majority"}),
}


def by_page(pages):
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


def cells(line):
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


def tables(page):
    """The tables of a page: (rows of cells without the header, the paragraph that follows)."""
    paragraphs = page.read_text().split("\n\n")
    return [
        ([cells(line) for line in paragraph.splitlines()[2:]], following)
        for paragraph, following in zip(paragraphs, [*paragraphs[1:], ""], strict=True)
        if paragraph.startswith("|")
    ]


def commands(page):
    """The lines of a page's blocks of commands."""
    blocks = re.findall(r"(?s)```bash\n(.*?)```", page.read_text())
    return [line for block in blocks for line in block.splitlines()]


@cache
def results(name):
    with open(ROOT / "docs/results" / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_readme_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) < 150
    assert [line for line in lines if len(line) > 100] == []


@by_page(WRITTEN)
def test_a_table_has_at_most_ten_rows(page):
    assert all(1 <= len(rows) <= 10 for rows, _ in tables(page))


def with_interval(row, name, form="{:.1f}"):
    value, low, high = (float(row[name + end]) for end in ("", "_low", "_high"))
    return (form + " [{:.1f}, {:.1f}]").format(value, low, high)


def readme_row(method):
    """The cells of README's result table that follow the method, from the csv."""
    name, picked = RESULTS[method]
    (row,) = [row for row in results(name) if picked.items() <= row.items()]
    if method.startswith("greedy"):
        return [with_interval(row, "voting_accuracy"), ""]
    if method.startswith("coverage"):
        return [row["coverage"], ""]
    return [with_interval(row, "accuracy"), with_interval(row, "greedy_gain", "{:+.1f}")]


def test_the_results_of_the_readme_are_those_of_the_csv():
    (rows,) = [rows for rows, _ in tables(README) if rows[0][0] in RESULTS]
    assert {method: values for method, *values in rows} == {m: readme_row(m) for m in RESULTS}


def values_of_csv(row):
    """How a table may show the values of a row: as they are, numbers to one decimal, samplers."""
    shown = []
    for name, value in row.items():
        is_number = re.fullmatch(r"-?\d+\.\d+", value)
        if name in ("dropout_p", "noise_std"):
            shown.append(f"`{name}` {value}")
        else:
            shown.append(f"{float(value):.1f}" if is_number else value)
    return Counter(shown)


def values_of_table(row):
    """The values that a table's row shows: samplers, words in backticks, beams, numbers."""
    pattern = r"(`\w+` [\d.]+)|`([^`]+)`|(\d+ x \d+)|(-?\d+(?:\.\d+)?)"
    return Counter("".join(groups) for groups in re.findall(pattern, " | ".join(row)))


def tables_from_csv():
    for page in WRITTEN:
        for rows, caption in tables(page):
            if caption.startswith("Rows of"):
                files = re.findall(r"\]\(results/(\w+\.csv)\)", caption)
                yield pytest.param(rows, files, id=f"{page.stem}-{rows[0][0]}-{files[0]}")


@pytest.mark.parametrize("rows, files", list(tables_from_csv()))
def test_each_row_of_a_table_is_a_row_of_the_csv_it_names(rows, files):
    known = [values_of_csv(row) for name in files for row in results(name)]
    missing = [row for row in rows if not any(values_of_table(row) <= values for values in known)]
    assert missing == []


def test_most_tables_of_results_name_their_csv():
    assert len(list(tables_from_csv())) >= 7


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text())
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@by_page([*PAGES, ROOT / "checkpoints/README.md"])
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@by_page(WRITTEN)
def test_every_figure_has_a_command_that_makes_it(page):
    text = page.read_text()
    figures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    commands = ("plot_results", "reproduce", "tune_sampler")
    makers = ("./run_tts_with_rm.sh", "benchmarks.all", *(f"src.{name}" for name in commands))
    assert not figures or any(maker in text for maker in makers)


@by_page(WRITTEN)
def test_modules_scripts_and_files_of_commands_exist(page):
    inline = re.findall(r"`([^`\n]+)`", page.read_text())
    text = "\n".join([*commands(page), *inline])
    files = [
        f"{module.replace('.', '/')}.py"
        for module in re.findall(r"-m ((?:src|benchmarks|tests)(?:\.\w+)+)", text)
    ]
    files += re.findall(r"\./(\w+\.sh)", text)
    files += re.findall(r"\b((?:training_args|src|utils|tests)/[\w/]+\.\w+)", text)
    assert [file for file in files if not (ROOT / file).is_file()] == []


@by_page(WRITTEN)
def test_flags_of_commands_are_those_of_flags_md(page):
    known = set(re.findall(r"`(--\w+)`", (ROOT / "docs/flags.md").read_text())) | {"--config"}
    for line in commands(page):
        _, module, flags = line.partition("-m src.infer_")
        assert not module or set(re.findall(r"--\w+", flags)) <= known, line


def test_code_md_names_every_module():
    sections = re.split(r"(?m)^## ", (ROOT / "docs/code.md").read_text())
    for section in sections:
        folder = ROOT / section.partition("\n")[0]
        if not section.startswith(("src/", "utils")):
            continue
        named = set(re.findall(r"`(\w+)`", section))
        modules = {path.stem for path in folder.rglob("*.py")} - {"__init__"}
        assert modules <= named, folder.name


def test_the_python_example_of_usage_md_prints_four_answers(monkeypatch, capsys):
    example = re.search(
        r"(?s)## Python\n\n```python\n(.*?)```", (ROOT / "docs/usage.md").read_text()
    )
    monkeypatch.chdir(ROOT)
    exec(compile(example[1], "docs/usage.md", "exec"), {})
    answers = ast.literal_eval(capsys.readouterr().out)
    assert len(answers) == 4


def test_citation_cff_names_software_and_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == "latent-tts"
    assert citation["license"] == "MIT"
    assert citation["message"] and citation["authors"]
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors", "year"} <= paper.keys()
    for cited in (README.read_text(), str(paper)):
        assert "Parallel Test-Time Scaling for Latent Reasoning Models" in cited
        assert "2510.07745" in cited
