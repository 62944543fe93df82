"""The backbones by the name that --model_type takes, and their classes for each architecture."""

from src.models.architectures import combine
from src.models.coconut import COCONUT
from src.models.codi import CODI
from src.models.colar import CoLaR

BACKBONES = {"coconut": COCONUT, "codi": CODI, "colar": CoLaR}


def architectures(model_type):
    """The names of the architectures that a backbone exists for; the first is its default."""
    return BACKBONES[model_type].architectures


def model_class(model_type, architecture):
    """The class of a backbone, a key of BACKBONES, on an architecture, a config's ``model_type``.

    Raises ValueError where the backbone does not exist for it.
    """
    return combine(BACKBONES[model_type], architecture)
