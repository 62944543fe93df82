"""The backbones by the name that --model_type takes."""

from src.models.coconut import COCONUT
from src.models.codi import CODI
from src.models.colar import CoLaR

BACKBONES = {"coconut": COCONUT, "codi": CODI, "colar": CoLaR}
