"""COCONUT (Hao et al., arXiv 2412.06769): GPT-2 whose last hidden state is its next input."""

from transformers import GPT2LMHeadModel

from src.models.gpt2 import GPT2Decoder
from src.models.latent_reasoner import LatentReasoner
from utils.answers import after_hash


class COCONUT(LatentReasoner, GPT2Decoder, GPT2LMHeadModel):
    """Published layout: ``transformer.*`` as GPT-2, ``lm_head.weight`` tied (it may be absent)."""

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
