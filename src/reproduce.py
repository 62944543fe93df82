"""Tests the paper's claims: python -m src.reproduce

It samples, annotates, trains and chooses with the project's own commands, and writes report.md,
report.json and the figures. Interrupted, it resumes. The bundled COCONUT takes at most 45 minutes
on 2 cores.
"""

from dataclasses import dataclass
from pathlib import Path

from src.claims.evidence import Evidence
from src.claims.figure import draw_figures
from src.claims.plan import Plan
from src.claims.report import as_json, as_markdown, judge, summary
from src.claims.setting import check, full_setting, paper_setting, tiny_setting
from src.claims.stages import run_stages
from src.models import BACKBONES
from src.runs.launch import default_processes
from src.runs.run_folder import environment_of
from utils.cli import flag, parse_flags
from utils.errors import UserError, reports_user_errors
from utils.files import write_json, write_text


@dataclass
class ReproduceArguments:
    """The flags of src.reproduce. Raises UserError where data or models are missing."""

    model: str = flag("coconut", "the backbone", list(BACKBONES))
    profile: str = flag(
        "tiny", "the bundled models, or the published ones on GPUs", ["tiny", "paper"]
    )
    full: bool = flag(False, "true: all questions, 5 seeds, longer trainings (tiny only)")
    nproc: int | None = flag(None, "processes, default: one a GPU, or one a core, at most 4")
    output_dir: str | None = flag(None, "default: outputs/reproduce_<profile>_<model>")

    def __post_init__(self):
        if self.full and self.profile == "paper":
            raise UserError("--full true: the paper's profile is always full; leave it out")
        self.nproc = self.nproc or default_processes()
        size = "full" if self.full else self.profile
        self.output_dir = self.output_dir or f"outputs/reproduce_{size}_{self.model}"

    def setting(self):
        """The Setting of these flags."""
        make = paper_setting if self.profile == "paper" else tiny_setting
        setting = make(self.model, Path(self.output_dir), self.nproc)
        return full_setting(setting) if self.full else setting


@reports_user_errors
def main():
    setting = parse_flags(ReproduceArguments, "src.reproduce", __doc__).setting()
    prepare(setting)
    plan = Plan(setting)
    seconds = run_stages(plan)
    evidence = Evidence(plan)
    judged = judge(evidence)
    figures, environment = draw_figures(plan, evidence, judged), environment_of(setting.nproc)
    text = as_markdown(plan, judged, figures, seconds, environment)
    write_text(setting.folder / "report.md", text)
    write_json(setting.folder / "report.json", as_json(setting, judged, seconds, environment))
    print("\n".join([*summary(judged), f"wrote {setting.folder}/report.md and report.json"]))


if __name__ == "__main__":
    main()
