"""Trains a backbone: accelerate launch -m src.train_backbone training_args/backbone_*.yaml"""

from pathlib import Path

import torch
from accelerate import Accelerator
from transformers.utils import logging

from src.models.precision import slowness
from src.training.backbone_recipe import Recipe
from src.training.backbone_trainer import BackboneTrainer
from utils.cli import Parser
from utils.config import load_yaml
from utils.errors import reports_user_errors, warn
from utils.files import write_text
from utils.processes import end_processes, leave_cleanly, use_all_cores


@reports_user_errors
def main():
    parser = Parser(prog="src.train_backbone", description=__doc__)
    parser.add_argument("recipe", type=Path, help="a YAML file, see training_args/")
    path = parser.parse_args().recipe
    recipe = load_yaml(path, Recipe)
    logging.disable_progress_bar()  # of weights that are read and written
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(), mixed_precision=recipe.mixed_precision
    )
    leave_cleanly()
    use_all_cores()
    trainer = BackboneTrainer(recipe, accelerator)
    if accelerator.is_main_process:
        print(trainer.introduction(), flush=True)
        text = path.read_text(encoding="utf-8")
        write_text(Path(recipe.output_dir) / "recipe.yaml", text)
    slow = slowness("bfloat16") if recipe.mixed_precision == "bf16" else None
    if slow:
        warn(f"mixed_precision: {slow}; auto chooses what is fast")
    trainer.run()
    end_processes()


if __name__ == "__main__":
    main()
