import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from functools import partial

import pytest
import torch
from transformers import GPT2Config, LlamaConfig

from src.models.coconut import COCONUT
from src.models.codi import CODI
from src.models.colar import CoLaR
from src.models.latent_rm import LATENT_RMS, GPT2LatentRM
from src.models.tokenizers import build_tokenizer, set_token_ids


def random_gpt2(cls, seed=0, **values):
    """A small random COCONUT or CODI, restless enough that samples and questions differ."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(cls)
    values = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 96} | values
    config = GPT2Config(
        vocab_size=len(tokenizer), initializer_range=0.3, bos_token_id=1, eos_token_id=1, **values
    )
    model = set_token_ids(cls(config), tokenizer)
    # random answers should end at different lengths: make end-of-text likelier than one word in 263
    model.lm_head.weight.data[tokenizer.eos_token_id] *= 3
    return model.eval(), tokenizer


def random_coconut(seed=0, **values):
    return random_gpt2(COCONUT, seed, **values)


def random_codi(seed=0, projector=True, **values):
    return random_gpt2(CODI, seed, projector=projector, projector_hidden_size=24, **values)


def random_colar(seed=0, **values):
    """A small random CoLaR that ends its latent phase early, late, or at a cap of some thoughts."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(CoLaR)
    values = {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 48, "max_position_embeddings": 128, "latent_intermediate_size": 24,
        "latent_embedding_std": 0.3,
    } | values  # fmt: skip
    config = LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, bos_token_id=1, **values)
    model = set_token_ids(CoLaR(config), tokenizer)
    model.lm_head.weight.data[tokenizer.eos_token_id] *= 3
    model.lm_head.weight.data[model.config.end_latent_token_id] *= 2
    return model.double().eval(), tokenizer  # its feedback through the head makes much of rounding


RANDOM = {
    "coconut": random_coconut,
    "codi": random_codi,
    "codi without projector": partial(random_codi, projector=False),
    "colar": random_colar,
}


# as the commands that the tests start: other thread counts round differently
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def coconut():
    return random_coconut()


@pytest.fixture(scope="session", params=RANDOM)
def backbone(request):
    """Each backbone in turn: a small random model and its tokenizer."""
    return RANDOM[request.param]()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A folder with a small random checkpoint in the published layout."""
    model, tokenizer = random_coconut()
    path = tmp_path_factory.mktemp("checkpoints") / "random-coconut"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def random_judge(backbone, seed=1):
    """A small random reward model of the architecture of ``backbone``, for its thoughts."""
    torch.manual_seed(seed)
    config = type(backbone.config).from_dict(backbone.config.to_dict())
    return LATENT_RMS[config.model_type](config).to(backbone.dtype).eval()


def random_latent_rm(seed=1, **shape):
    """A small random reward model for the thoughts of ``random_coconut``."""
    torch.manual_seed(seed)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96} | shape
    config = GPT2Config(
        vocab_size=len(build_tokenizer(COCONUT)),
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=1,
        **shape,
    )
    return GPT2LatentRM(config).eval()
