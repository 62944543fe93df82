"""Tests the paper's claims: python -m src.reproduce

It samples, annotates, trains and chooses with the project's own commands, and writes report.md,
report.json and the figures. Interrupted, it resumes. The bundled COCONUT takes at most 45 minutes
on 2 cores.
"""

from src.claims.evidence import Evidence
from src.claims.figure import draw_figures
from src.claims.plan import Plan
from src.claims.report import as_json, as_markdown, judge, summary
from src.claims.setting import prepare, setting_of
from src.claims.stages import run_stages
from src.runs.arguments import ReproduceArguments
from src.runs.figure_style import load_matplotlib
from utils.cli import parse_flags
from utils.errors import reports_user_errors
from utils.files import write_json, write_text


@reports_user_errors
def main():
    setting = setting_of(parse_flags(ReproduceArguments, "src.reproduce", __doc__))
    load_matplotlib()  # if it is missing, say so before the work
    prepare(setting)
    plan = Plan(setting)
    seconds = run_stages(plan)
    evidence = Evidence(plan)
    judged, environment = judge(evidence), evidence.environment()
    figures = draw_figures(plan, evidence, judged)
    text = as_markdown(plan, judged, figures, seconds, environment)
    write_text(setting.folder / "report.md", text)
    write_json(setting.folder / "report.json", as_json(setting, judged, seconds, environment))
    print("\n".join([*summary(judged), f"wrote {setting.folder}/report.md and report.json"]))


if __name__ == "__main__":
    main()
