"""Trains a backbone: accelerate launch -m src.train_backbone training_args/backbone_*.yaml

Any key of the recipe can be given as --KEY=VALUE after it.
"""

from dataclasses import fields

from transformers.utils import logging

from src.training.backbone_recipe import Recipe
from src.training.backbone_trainer import train
from src.training.command_line import is_finished, push_checkpoint, training_flags
from src.training.trackers import make_accelerator
from utils.config import build_from
from utils.errors import reports_user_errors
from utils.processes import end_processes, leave_cleanly, use_all_cores
from utils.release import BACKBONES


@reports_user_errors
def main():
    flags = training_flags("src.train_backbone", __doc__, BACKBONES)
    keys = [field.name for field in fields(Recipe)]
    values = flags.source.values(BACKBONES, keys)
    recipe = build_from(Recipe, values, flags.source.name)
    recipe.report_to = flags.report_to or recipe.report_to
    logging.disable_progress_bar()  # of weights that are read and written
    accelerator = make_accelerator(recipe)
    leave_cleanly()
    use_all_cores()
    if not (flags.push_to_hub and is_finished(recipe.output_dir, values)):
        train(recipe, accelerator, flags.source.text(values))
    end_processes()
    if flags.push_to_hub and accelerator.is_main_process:
        push_checkpoint(recipe.output_dir, flags.push_to_hub)


if __name__ == "__main__":
    main()
