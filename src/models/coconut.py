"""COCONUT (Hao et al., arXiv 2412.06769): GPT-2 whose last hidden state is its next input."""

from transformers import GPT2LMHeadModel

from src.models import gpt2
from src.models.base import LatentReasoner
from src.sampling.samplers import KEEP_ALL
from utils.answers import after_hash


class COCONUT(LatentReasoner, GPT2LMHeadModel):
    """Published layout: ``transformer.*`` as GPT-2, ``lm_head.weight`` tied (it may be absent).

    ``prefill``, ``extend`` and the caches are described in src/models/gpt2.py.
    """

    parse_answer = staticmethod(after_hash)

    def __init__(self, config):
        gpt2.check_config(config)
        super().__init__(config)

    @staticmethod
    def format_prompt(question):
        return f"{question}\n<|start-latent|>"

    def embed(self, ids):
        """Token ids to embeddings (..., D), without positions."""
        return self.transformer.wte(ids)

    def prefill(self, x, lengths, drop=KEEP_ALL):
        return gpt2.prefill(self.transformer, x, lengths, drop)

    def extend(self, x, positions, prompt, own, drop=KEEP_ALL):
        return gpt2.extend(self.transformer, x, positions, prompt, own, drop)

    def new_cache(self, rows, capacity):
        """An empty cache for the own positions of so many rows."""
        return gpt2.FixedCache(self.config, rows, capacity, self.dtype, self.device)

    def to_thought(self, hidden):
        """The latent thought that is fed back for a hidden state (..., D): the state itself."""
        return hidden
