"""Trains LatentRM: accelerate launch -m src.train training_args/train_*.yaml"""

from pathlib import Path

from src.training.reward_recipe import load_recipe
from src.training.reward_trainer import train
from utils.cli import Parser
from utils.errors import reports_user_errors
from utils.processes import end_processes, leave_cleanly, use_all_cores


@reports_user_errors
def main():
    parser = Parser(prog="src.train", description=__doc__)
    parser.add_argument("recipe", type=Path, help="a YAML file, see training_args/")
    path = parser.parse_args().recipe
    recipe = load_recipe(path)
    leave_cleanly()
    use_all_cores()
    train(recipe, path.read_text(encoding="utf-8"))
    if recipe.process_index == 0:
        print(f"wrote {recipe.output_dir}")
    end_processes()


if __name__ == "__main__":
    main()
