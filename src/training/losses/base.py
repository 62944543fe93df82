"""What the losses of the backbones share."""

from torch import nn


class BackboneLoss(nn.Module):
    """Base of the losses. A loss gives default_settings, the keys of a recipe's ``loss`` with their
    defaults; stage_keys, the keys of a stage that it uses; format_row; num_positions; forward and
    solved (see src/training/losses/coconut.py).
    """

    default_settings = {}
    stage_keys = set()

    def __init__(self, model, settings, tokenizer, model_dropout=0.0):
        """settings: as default_settings. model_dropout: rate of GPT-2's own dropout."""
        super().__init__()
        self.model, self.settings, self.tokenizer = model, settings, tokenizer
        self.model_dropout = model_dropout

    @staticmethod
    def accepts(row):
        """Whether a row of the training data can be learned from."""
        return True
