import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers import GPT2Config

from src.models.coconut import COCONUT
from src.models.latent_rm import LatentRM
from src.models.special_tokens import set_token_ids
from src.models.tiny_tokenizer import build_tokenizer


def random_coconut(seed=0, **shape):
    """A small random COCONUT, restless enough that samples and questions differ."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    shape = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 96} | shape
    config = GPT2Config(
        vocab_size=len(tokenizer), initializer_range=0.3, bos_token_id=1, eos_token_id=1, **shape
    )
    model = set_token_ids(COCONUT(config), tokenizer)
    # random answers should end at different lengths: make end-of-text likelier than one word in 263
    model.lm_head.weight.data[tokenizer.eos_token_id] *= 3
    return model.eval(), tokenizer


# as the commands that the tests start: other thread counts round differently
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def coconut():
    return random_coconut()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A folder with a small random checkpoint in the published layout."""
    model, tokenizer = random_coconut()
    path = tmp_path_factory.mktemp("checkpoints") / "random-coconut"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def random_latent_rm(seed=1, thought_width=32, **shape):
    """A small random reward model for the thoughts of ``random_coconut``."""
    torch.manual_seed(seed)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96} | shape
    config = GPT2Config(
        vocab_size=len(build_tokenizer()), initializer_range=0.3, bos_token_id=1, eos_token_id=1, **shape
    )
    if thought_width != shape["n_embd"]:
        config.latent_hidden_size = thought_width
    return LatentRM(config).eval()
