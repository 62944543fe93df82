"""COCONUT (Hao et al., arXiv 2412.06769): the last hidden state is the next input."""

from src.models.latent_reasoner import LatentReasoner
from utils.answers import after_hash


class COCONUT(LatentReasoner):
    """Published layout: as the architecture's; tied ``lm_head.weight`` may be absent."""

    parse_answer = staticmethod(after_hash)

    @staticmethod
    def format_prompt(question):
        return f"{question}\n<|start-latent|>"

    @staticmethod
    def format_answer(answer):
        return f"### {answer}"

    def to_thought(self, hidden):
        """The latent thought that is fed back for a hidden state (..., D): the state itself."""
        return hidden
