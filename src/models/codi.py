"""CODI (Shen et al., arXiv 2502.21074): latent thoughts learned by self-distillation."""

from torch import nn

from src.models.latent_reasoner import GenerationDefaults, LatentReasoner
from utils.answers import last_number


class CODI(LatentReasoner):
    """Published layout: as COCONUT, and with ``config.projector`` also ``projector.{1,3,4}``."""

    parse_answer = staticmethod(last_number)
    paper_defaults = GenerationDefaults(noise_std=1.4, svp_alpha=0.5)

    def __init__(self, config):
        super().__init__(config)
        self.projector = new_projector(config)
        self.post_init()

    @staticmethod
    def format_prompt(question):
        return f"{question}<|start-latent|>"

    @staticmethod
    def format_answer(answer):
        return f"The answer is: {answer}"

    def to_thought(self, hidden):
        """The latent thought that is fed back for a hidden state (..., D): the state, projected."""
        return self.projector(hidden)


def new_projector(config):
    """The projector that a config asks for; without one the identity, which has no weights."""
    if not getattr(config, "projector", False):
        return nn.Identity()
    width = config.hidden_size
    inner = getattr(config, "projector_hidden_size", width)
    return nn.Sequential(
        nn.Dropout(getattr(config, "projector_dropout", 0.0)),
        nn.Linear(width, inner),
        nn.GELU(),
        nn.Linear(inner, width),
        nn.LayerNorm(width),
    )
