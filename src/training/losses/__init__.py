"""The loss of each backbone, by its model type."""

from src.training.losses.coconut import CoconutLoss
from src.training.losses.codi import CodiLoss
from src.training.losses.colar import ColarLoss

BACKBONE_LOSSES = {"coconut": CoconutLoss, "codi": CodiLoss, "colar": ColarLoss}
