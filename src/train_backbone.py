"""Trains a backbone: accelerate launch -m src.train_backbone training_args/backbone_*.yaml"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator

from src.training.backbone import BackboneTrainer, Recipe, copy_recipe
from utils.config import load_yaml
from utils.errors import reports_user_errors


@reports_user_errors
def main():
    parser = argparse.ArgumentParser(prog="src.train_backbone", description=__doc__)
    parser.add_argument("recipe", type=Path, help="a YAML file, see training_args/")
    path = parser.parse_args().recipe
    recipe = load_yaml(path, Recipe)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=recipe.mixed_precision)
    trainer = BackboneTrainer(recipe, accelerator)
    if accelerator.is_main_process:
        copy_recipe(path, recipe.output_dir)
    trainer.run()
    accelerator.wait_for_everyone()  # all leave together
    accelerator.end_training()


if __name__ == "__main__":
    main()
