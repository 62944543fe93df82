"""Chooses the strengths of both samplers: python -m src.tune_sampler --model_id FOLDER

It sweeps dropout_p and noise_std on a validation file, and writes for each the value with the
highest coverage and the one with the best majority vote into the checkpoint's
generation_config.json (dropout_p, dropout_p_for_vote, noise_std, noise_std_for_vote).
"""

from dataclasses import dataclass
from pathlib import Path

from src.models import BACKBONES
from src.models.loading import default_backbone
from src.runs.figures import figures_line
from src.runs.finished_runs import finished_runs
from src.runs.launch import default_processes, run_cells
from src.runs.tables import collect
from src.runs.tuning import cells, choices_of, curves, grids_of, table_of, write_choices
from utils.cli import flag, parse_flags
from utils.errors import UserError, reports_user_errors


@dataclass
class TuningArguments:
    """The flags of src.tune_sampler. Raises ValueError or UserError on impossible values."""

    model_type: str = flag("coconut", f"backbone: {', '.join(BACKBONES)}", list(BACKBONES))
    model_id: str | None = flag(None, "folder of the checkpoint, default: as in src.infer_gpt2")
    data_path: str = flag("data/tiny_valid.json", "JSON list of question, steps, answer")
    limit: int | None = flag(None, "only the first so many questions")
    n_samples: int = flag(64, "trajectories N a question, for which the strengths are chosen")
    dropout_ps: list[float] | None = flag(None, "rates, default: around the checkpoint's")
    noise_stds: list[float] | None = flag(None, "sigmas, default: around the checkpoint's")
    seeds: list[int] = flag([42, 43], "measures are means over these seeds")
    batch_size: int = flag(16, "questions a batch")
    nproc: int | None = flag(None, "processes, default: one a GPU, or one a core, at most 4")
    output_dir: str | None = flag(None, "default: outputs/tune_<name of the checkpoint>")

    def __post_init__(self):
        self.model_id = self.model_id or default_backbone(self.model_type)
        if not Path(self.model_id).is_dir():
            mend = f"fetch it first: hf download {self.model_id} --local-dir FOLDER"
            raise UserError(
                f"--model_id {self.model_id}: no folder, so nothing to write to; {mend}"
            )
        self.nproc = self.nproc or default_processes()
        self.output_dir = self.output_dir or f"outputs/tune_{Path(self.model_id).name}"


@reports_user_errors
def main():
    arguments = parse_flags(TuningArguments, "src.tune_sampler", __doc__)
    folder = Path(arguments.output_dir)
    run_cells(cells(arguments, grids_of(arguments)), folder / "cells.txt", arguments.nproc)
    runs = finished_runs(folder)
    collect(runs, folder)
    found = curves(runs)
    print("\n".join([*table_of(found, runs), figures_line(runs, folder)]))
    print("\n".join(write_choices(arguments, choices_of(found))))


if __name__ == "__main__":
    main()
