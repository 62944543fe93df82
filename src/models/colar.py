"""CoLaR (Tan et al., arXiv 2505.16552): thoughts are compressed token embeddings."""

from torch import nn

from src.models.latent_reasoner import GenerationDefaults, LatentReasoner
from utils.answers import after_answer


class LatentHead(nn.Module):
    """From the last hidden state (..., D) to the next thought (..., D).

    The thought is in units of the token embeddings' standard deviation.
    """

    def __init__(self, config):
        super().__init__()
        width, inner = config.hidden_size, config.latent_intermediate_size
        self.fc = nn.Sequential(
            nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, inner), nn.LayerNorm(inner)
        )
        self.mean = nn.Linear(inner, width)

    def forward(self, hidden):
        return self.mean(self.fc(hidden))


class CoLaR(LatentReasoner):
    """Published layout: as the architecture's, and ``lt_head.fc.{0,2,3}``, ``lt_head.mean``.

    The model decides when to stop thinking, by ``###``. ``config.latent_embedding_std`` is the unit
    of its thoughts.
    """

    architectures = ("llama", "gpt2")
    parse_answer = staticmethod(after_answer)
    special_tokens = {"end_latent_token_id": "###", "latent_token_id": "<|latent|>"}
    config_keys = ("latent_intermediate_size", "latent_embedding_std")
    stops_itself = True
    paper_defaults = GenerationDefaults(
        latent_length=64,
        dropout_p=0.03,
        noise_std=0.01,
        svp_alpha=0.2,  # this and the next are nobody's; a LLaMA's weights are small
        weight_noise_std=0.01,
        dropout_answer=True,
        dropout_embedding=False,
    )

    def __init__(self, config):
        super().__init__(config)
        self.lt_head = LatentHead(config)
        self.post_init()

    @staticmethod
    def format_prompt(question, speed=2):
        return f"Question: {question} Let's think step by step:(Thinking speed: {speed})###"

    @classmethod
    def format_cot(cls, question, steps, answer):
        """As at speed 1, where a thought is one token: the steps, ``###``, and the answer."""
        text = "\n".join(steps) + cls.special_tokens["end_latent_token_id"]
        return cls.format_prompt(question, speed=1), text + cls.format_answer(answer)

    @staticmethod
    def format_answer(answer):
        return f"Answer:{answer}"

    def to_thought(self, hidden):
        """The latent thought that is fed back for a hidden state (..., D)."""
        return self.lt_head(hidden) * self.config.latent_embedding_std
