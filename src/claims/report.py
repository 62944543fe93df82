"""report.md and report.json of the claims."""

import textwrap
from collections import Counter
from dataclasses import asdict

from src.claims.claims import CLAIMS, OWN_CLAIMS, PAPER_CLAIMS
from src.claims.figure import FOLDER, FOREST
from src.claims.plan import TRAININGS
from src.claims.verdicts import RULES, WHOLE, verdict_of
from utils.progress import duration

UNTESTED = "not tested"
WIDTH = 100  # of lines of text
CAPTIONS = {
    "coverage": "Coverage (solid), the majority vote (dashed) and greedy (dotted) against N.",
    "diversity": "Coverage (solid) and the vote of 64 (dashed) against the two measures of "
    "diversity; the numbers at the points are p or sigma.",
    "map": "Thoughts of some questions that some trajectories solve, in two principal components; "
    "the line is greedy's path.",
    "cost": "What each way to choose reaches, against what it costs; the grey line is coverage.",
    "gains": "Gains over one greedy trajectory by the number of steps of a problem.",
    "latent_rm": "Rewards of right and wrong trajectories by thought, how often the chosen answer "
    "is right where its weight is so high, and the pairwise AUC after each thought.",
}


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
        "setting": setting.contents(),
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
        "seconds": seconds,
        "environment": environment,
    }


def as_markdown(plan, judged, figures, seconds, environment):
    """The text of report.md. figures: {kind: [names of files in FOLDER]}."""
    setting = plan.setting
    lines = [
        f"# The paper's claims on {setting.model_id}",
        "",
        *_introduction(setting, judged),
        *_overview("The claims of You et al. (arXiv 2510.07745)", PAPER_CLAIMS, judged),
        *_overview("The claims of this project", OWN_CLAIMS, judged),
        f"![Every comparison with its 95 % interval.]({FOLDER}/{FOREST}.png)",
        "",
        "Every comparison of the claims with its 95 % interval, coloured by its verdict.",
        "",
        *_rules(),
    ]
    for claim in CLAIMS:
        lines += _claim(claim, judged[claim.name], figures)
    return "\n".join([*lines, *_commands(plan), *_footer(seconds, environment)]) + "\n"


def _paragraph(text):
    return [*textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False), ""]


def _introduction(setting, judged):
    counts = Counter(verdict(judged[claim.name]) for claim in PAPER_CLAIMS)
    size = "all questions" if setting.limit is None else f"the first {setting.limit} questions"
    files = ", ".join(f"{name} ({path})" for name, path in setting.benchmarks.items())
    verdicts = ", ".join(f"{name}: {count}" for name, count in counts.items())
    models = len(TRAININGS) * len(setting.seeds)
    return [
        *_paragraph(f"**Of the paper's {len(PAPER_CLAIMS)} claims: {verdicts}.**"),
        *_paragraph(
            f"Measured on {size} of {files}, with the seeds {', '.join(map(str, setting.seeds))}. "
            "Numbers are percent and differences points, with 95 % bootstrap intervals over "
            "questions of the mean over seeds."
        ),
        *_paragraph(
            f"{models} reward models were trained for this report by {setting.recipe}, one of each "
            f"kind for every seed, on {setting.train_questions or 'all'} training questions with "
            f"{setting.rollouts} rollouts a thought, sampled by {setting.sampler}. A verdict on "
            "them is one at this size: the paper has 385,620 questions and 64 rollouts."
        ),
    ]


def _overview(title, claims, judged):
    rows = [f"| {c.name} | {c.statement} | **{verdict(judged[c.name])}** |" for c in claims]
    return [f"## {title}", "", "| | claim | verdict |", "| --- | --- | --- |", *rows, ""]


def _rules():
    rules = [f"- **{name}**: {text}" for name, text in RULES.items()]
    return [
        "## Rules",
        "",
        *_paragraph(
            "They stand in `src/claims/verdicts.py`, what is compared in `src/claims/claims.py`. "
            "The last lines name the commit that judged."
        ),
        *(line for rule in rules for line in textwrap.wrap(rule, WIDTH, subsequent_indent="  ")),
        "",
        *_paragraph(WHOLE),
    ]


def _claim(claim, parts, figures):
    lines = [f"## Claim {claim.name}: {verdict(parts)}", "", *_paragraph(claim.statement)]
    if claim.figures_given:
        lines += _paragraph(f"The paper: {claim.figures_given}.")
    if claim.note:
        lines += _paragraph(claim.note)
    for part, rows in parts.items():
        lines += table(part, rows) if rows else _paragraph(f"{part}: not possible here.")
    for kind in claim.figures:
        for name in figures.get(kind, []):
            lines += [f"![{kind.replace('_', ' ')}]({FOLDER}/{name}.png)", ""]
            lines += _paragraph(CAPTIONS[kind])
    return [*lines, *_paragraph(f"Commands (below): {', '.join(claim.runs)}.")]


def table(title, rows):
    """The lines of a table of Comparisons, under a title."""
    lines = [
        *_paragraph(f"{title}:"),
        "| where | first | second | difference | by seed | rule | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        first, second = (
            f"{name} {value:.1f}"
            for name, value in zip(row.names, (row.first, row.second), strict=True)
        )
        seeds = " ".join(f"{difference:+.1f}" for difference in row.seeds)
        interval = f"{row.value:+.1f} [{row.low:.1f}, {row.high:.1f}]"
        cells = (row.where, first, second, interval, seeds, row.rule, row.verdict)
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _commands(plan):
    """All command lines; those that differ in the seed alone are shown once, with $SEED."""
    seeds = plan.setting.seeds
    lines = [
        "## Commands",
        "",
        *_paragraph(
            "`python -m src.reproduce` runs them all and draws the figures. SEED stands for "
            f"{', '.join(map(str, seeds))}. The reward models of these seeds are trained with the "
            f"seeds 0 to {len(seeds) - 1}, all on one pool; their recipes lie in the folder of the "
            "report."
        ),
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
    versions, commits = environment["versions"], " and ".join(environment["git_commits"])
    times = ", ".join(f"{stage} {duration(time)}" for stage, time in seconds.items())
    made = f"runs of commit {commits}, judged by {environment['judged_by']}"
    where = f"{environment['processes']} processes on {environment['device']}"
    libraries = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers"))
    total = duration(sum(seconds.values()))
    return [
        "---",
        "",
        *_paragraph(
            f"{environment['date']}; {made}; {libraries}; {where}. {total} in all: {times}."
        ),
    ]
