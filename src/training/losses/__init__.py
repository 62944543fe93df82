"""The loss of each backbone, and of its start in words, by its model type."""

from src.training.losses.coconut import CoconutLoss
from src.training.losses.codi import CodiLoss
from src.training.losses.colar import ColarLoss
from src.training.losses.cot import COT, CotLoss

BACKBONE_LOSSES = {"coconut": CoconutLoss, "codi": CodiLoss, "colar": ColarLoss, COT: CotLoss}
