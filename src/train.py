"""Trains LatentRM: accelerate launch -m src.train training_args/train_*.yaml"""

from src.training.command_line import is_finished, push_checkpoint, training_flags
from src.training.reward_recipe import load_recipe
from src.training.reward_trainer import train
from utils.errors import reports_user_errors
from utils.processes import end_processes, leave_cleanly, use_all_cores


@reports_user_errors
def main():
    flags = training_flags("src.train", __doc__)
    recipe = load_recipe(flags.recipe, flags.report_to)
    text = flags.recipe.read_text(encoding="utf-8")
    is_main = recipe.process_index == 0
    leave_cleanly()
    use_all_cores()
    if not (flags.push_to_hub and is_finished(recipe.output_dir, text)):
        train(recipe, text)
        if is_main:
            print(f"wrote {recipe.output_dir}")
    end_processes()
    if flags.push_to_hub and is_main:
        push_checkpoint(recipe.output_dir, flags.push_to_hub)


if __name__ == "__main__":
    main()
