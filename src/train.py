"""Trains LatentRM: accelerate launch -m src.train training_args/train_*.yaml [--KEY=VALUE ..]"""

from src.training.command_line import is_finished, push_checkpoint, training_flags
from src.training.reward_recipe import build_recipe, recipe_values
from src.training.reward_trainer import train
from utils.errors import reports_user_errors
from utils.processes import end_processes, leave_cleanly, use_all_cores
from utils.release import REWARD_MODELS


@reports_user_errors
def main():
    flags = training_flags("src.train", __doc__, REWARD_MODELS)
    values = recipe_values(flags.source)
    recipe = build_recipe(values, flags.source.name, flags.report_to)
    is_main = recipe.process_index == 0
    leave_cleanly()
    use_all_cores()
    if not (flags.push_to_hub and is_finished(recipe.output_dir, values)):
        train(recipe, flags.source.text(values))
        if is_main:
            print(f"wrote {recipe.output_dir}")
    end_processes()
    if flags.push_to_hub and is_main:
        push_checkpoint(recipe.output_dir, flags.push_to_hub)


if __name__ == "__main__":
    main()
