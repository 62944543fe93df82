"""Recipes from their files, as the training commands read them."""

from src.training.command_line import RecipeSource
from src.training.reward_recipe import build_recipe, recipe_values
from utils.config import build_from, read_yaml


def load_yaml(path, cls):
    """The YAML file ``path`` as an instance of dataclass ``cls``."""
    return build_from(cls, read_yaml(path), path)


def load_recipe(path, report_to=None):
    """The RewardRecipe of a YAML file, with another tracker if given."""
    return build_recipe(recipe_values(RecipeSource(path)), path, report_to)
