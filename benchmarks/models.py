"""The models that are measured: random weights of known shapes, no downloads."""

import torch
from transformers import GPT2Config, LlamaConfig

from src.models import model_class
from src.models.latent_rm import LATENT_RMS
from src.models.precision import DTYPES

NEVER = -1  # as the id of end-of-text, so that no answer ends early
_NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
SHAPES = {
    "gpt2-small": lambda: GPT2Config(**_NO_DROPOUT),
    "llama-3.2-1b": lambda: LlamaConfig(
        hidden_size=2048,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        intermediate_size=8192,
        vocab_size=128_256,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    ),
    # For the tests. Weights are large, so that answers differ from one another.
    "tiny-gpt2": lambda: GPT2Config(
        n_embd=32,
        n_layer=3,
        n_head=4,
        vocab_size=300,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.3,
        **_NO_DROPOUT,
    ),
    "tiny-llama": lambda: LlamaConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        vocab_size=300,
        max_position_embeddings=256,
        initializer_range=0.3,
    ),
}


def prepare(model, device):
    """The model as it is measured: on its device, in evaluation mode."""
    return model.to(device).eval()


def build_backbone(shape, dtype, device):
    """COCONUT of a shape, a key of SHAPES, in a number format, a key of DTYPES.

    COCONUT feeds back the hidden state itself, so it is the cost of the architecture alone.
    """
    config = SHAPES[shape]()
    torch.manual_seed(0)
    with torch.device(device):  # 1.2 billion random numbers take a while on a CPU
        model = model_class("coconut", config.model_type)(config)
    model.config.end_latent_token_id, model.config.eos_token_id = config.vocab_size - 1, NEVER
    return prepare(model.to(DTYPES[dtype]), device)


def build_reward_model(shape, dtype, device):
    """A LatentRM of a shape, for the thoughts of ``build_backbone``."""
    config = SHAPES[shape]()
    torch.manual_seed(0)
    with torch.device(device):
        model = LATENT_RMS[config.model_type](config)
    return prepare(model.to(DTYPES[dtype]), device)


def random_prompts(config, count, length):
    """Prompts (count, length) of random token ids, on the CPU."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, config.vocab_size - 1, (count, length), generator=generator)
