"""Trains a backbone: accelerate launch -m src.train_backbone training_args/backbone_*.yaml"""

from pathlib import Path

import torch
from accelerate import Accelerator

from src.models.precision import slowness
from src.training.backbone import BackboneTrainer, Recipe, copy_recipe
from utils.cli import Parser
from utils.config import load_yaml
from utils.errors import reports_user_errors, warn


@reports_user_errors
def main():
    parser = Parser(prog="src.train_backbone", description=__doc__)
    parser.add_argument("recipe", type=Path, help="a YAML file, see training_args/")
    path = parser.parse_args().recipe
    recipe = load_yaml(path, Recipe)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=recipe.mixed_precision)
    trainer = BackboneTrainer(recipe, accelerator)
    if accelerator.is_main_process:
        print(trainer.introduction(), flush=True)
        copy_recipe(path, recipe.output_dir)
    slow = slowness("bfloat16") if recipe.mixed_precision == "bf16" else None
    if slow:
        warn(f"mixed_precision: {slow}; auto chooses what is fast")
    trainer.run()
    accelerator.wait_for_everyone()  # all leave together
    accelerator.end_training()


if __name__ == "__main__":
    main()
