"""report.md and report.json of the claims."""

from collections import Counter
from dataclasses import asdict

from src.claims.claims import CLAIMS, OWN_CLAIMS, PAPER_CLAIMS
from src.claims.figure import NAME as FOREST
from src.claims.verdicts import RULES, WHOLE, verdict_of
from utils.progress import duration

UNTESTED = "not tested"


def judge(evidence):
    """{claim's name: {part: [Comparison]}} of all claims."""
    return {claim.name: claim.compare(evidence) for claim in CLAIMS}


def verdict(parts):
    """The verdict on a claim from its parts; one without comparisons is not tested."""
    comparisons = [comparison for rows in parts.values() for comparison in rows]
    return verdict_of(comparisons) if comparisons else UNTESTED


def summary(judged):
    """The lines to print: every claim with its verdict."""
    return [f"{claim.name}  {verdict(judged[claim.name]):14} {claim.statement}" for claim in CLAIMS]


def as_json(setting, judged, seconds, environment):
    """The content of report.json."""
    return {
        "setting": asdict(setting) | {"folder": str(setting.folder)},
        "claims": [
            {
                "name": claim.name,
                "statement": claim.statement,
                "paper": claim.figures_given or None,
                "verdict": verdict(judged[claim.name]),
                "comparisons": [
                    {"part": part} | asdict(row) | {"verdict": row.verdict}
                    for part, rows in judged[claim.name].items()
                    for row in rows
                ],
            }
            for claim in CLAIMS
        ],
        "seconds_of_last_session": seconds,
        "environment": environment,
    }


def as_markdown(plan, judged, figures, seconds, environment):
    """The text of report.md. figures: {kind: [names of files in the folder figures]}."""
    setting = plan.setting
    lines = [
        f"# The paper's claims on {setting.model_id}",
        "",
        *_introduction(setting, judged),
        *_overview("The claims of You et al. (arXiv 2510.07745)", PAPER_CLAIMS, judged),
        *_overview("The claims of this project", OWN_CLAIMS, judged),
        f"![Every comparison with its 95 % interval.](figures/{FOREST}.png)",
        "",
        "Every comparison with its 95 % interval, in points, coloured by its verdict.",
        "",
        *_rules(),
    ]
    for claim in CLAIMS:
        lines += _claim(claim, judged[claim.name], figures)
    return "\n".join([*lines, *_commands(plan), *_footer(seconds, environment)]) + "\n"


def _introduction(setting, judged):
    counts = Counter(verdict(judged[claim.name]) for claim in PAPER_CLAIMS)
    questions = "all questions" if setting.limit is None else f"the first {setting.limit} questions"
    counted = ", ".join(f"{count} {name}" for name, count in counts.items())
    seeds = ", ".join(map(str, setting.seeds))
    return [
        f"Of the paper's {len(PAPER_CLAIMS)} claims: {counted}.",
        "",
        f"Measured on {questions} of {', '.join(setting.benchmarks)}, with the seeds {seeds}. "
        f"Reward models are trained for this report, one of each kind for every seed, on "
        f"trajectories sampled by {setting.sampler}. Numbers are percent, differences points, with "
        "95 % bootstrap intervals over questions of the mean over seeds.",
        "",
    ]


def _overview(title, claims, judged):
    rows = [f"| {c.name} | {c.statement} | **{verdict(judged[c.name])}** |" for c in claims]
    return [f"## {title}", "", "| | claim | verdict |", "| --- | --- | --- |", *rows, ""]


def _rules():
    return [
        "## Rules",
        "",
        "They stand in `src/claims/verdicts.py` before anything is run.",
        "",
        *(f"- {text.strip()}" for text in RULES.values()),
        f"- {WHOLE}",
        "",
    ]


def _claim(claim, parts, figures):
    lines = [f"## Claim {claim.name}: {verdict(parts)}", "", claim.statement, ""]
    if claim.figures_given:
        lines += [f"The paper: {claim.figures_given}.", ""]
    if claim.note:
        lines += [claim.note, ""]
    for part, rows in parts.items():
        lines += _table(part, rows) if rows else [f"{part}: these models can't be tested.", ""]
    for kind in claim.figures:
        for name in figures.get(kind, []):
            lines += [f"![{kind.replace('_', ' ')}](figures/{name}.png)", ""]
    return [*lines, f"Commands (below): {', '.join(claim.runs)}.", ""]


def _table(title, rows):
    lines = [
        f"{title}:",
        "",
        "| comparison | first | second | difference | by seed | verdict |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        seeds = " ".join(f"{difference:+.1f}" for difference in row.seeds)
        interval = f"{row.value:+.1f} [{row.low:.1f}, {row.high:.1f}]"
        lines.append(
            f"| {row.label} | {row.first:.1f} | {row.second:.1f} | {interval} | {seeds} "
            f"| {row.verdict} |"
        )
    return [*lines, ""]


def _commands(plan):
    """All command lines; those that differ in the seed alone are shown once, with $SEED."""
    seeds = plan.setting.seeds
    lines = [
        "## Commands",
        "",
        "All that was run, by `python -m src.reproduce`. SEED stands for "
        f"{', '.join(map(str, seeds))}.",
        "",
    ]
    for name, of_one in plan.commands().items():
        shown = dict.fromkeys(_without_seed(line, seeds) for line in of_one)
        head = f"<details><summary>{name}: {len(of_one)} commands</summary>"
        lines += [head, "", "```bash", *shown, "```", "", "</details>", ""]
    return lines


def _without_seed(line, seeds):
    for seed in seeds:
        line = line.replace(f"--seed {seed} ", "--seed $SEED ").replace(f"seed{seed}", "seed$SEED")
    return line


def _footer(seconds, environment):
    total = duration(sum(seconds.values()))
    versions = environment["versions"]
    device = f"{environment['device']}, {environment['processes']} processes"
    commits = " and ".join(environment["git_commits"])
    return [
        "---",
        f"{environment['date']}, commit {commits}, torch {versions['torch']}, "
        f"transformers {versions['transformers']}, {device}; {total} in the last session.",
    ]
