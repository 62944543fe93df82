"""The backbones by the name that --model_type takes."""

from src.models.coconut import COCONUT

BACKBONES = {"coconut": COCONUT}
