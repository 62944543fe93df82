"""Small random models, and what many tests need."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from contextlib import contextmanager
from functools import partial

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import GPT2Config, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from src.models.architectures import combine
from src.models.coconut import COCONUT
from src.models.codi import CODI
from src.models.colar import CoLaR
from src.models.latent_rm import LATENT_RMS, GPT2LatentRM
from src.models.tokenizers import build_tokenizer, set_token_ids
from src.sampling.samplers import Sampling
from utils.errors import UserError

# As in the processes that tests start: another number of threads rounds differently.
torch.set_num_threads(1)

PROMPTS, QUESTIONS = [[20, 21, 22, 23, 24], [30, 31, 32], [40, 41, 42, 43]], [7, 3, 11]
NOISE = Sampling("noise", noise_std=0.5)

_rms_norm_in_float32 = LlamaRMSNorm.forward


def _rms_norm(self, x):
    """As transformers' RMSNorm, but float64 stays: small random models magnify rounding."""
    if x.dtype != torch.float64:
        return _rms_norm_in_float32(self, x)
    return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)


LlamaRMSNorm.forward = _rms_norm


def random_gpt2(cls, seed=0, **values):
    """A small random COCONUT or CODI, with weights so large that samples and questions differ."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(cls)
    values = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 96} | values
    config = GPT2Config(
        vocab_size=len(tokenizer), initializer_range=0.3, bos_token_id=1, eos_token_id=1, **values
    )
    model = set_token_ids(combine(cls, "gpt2")(config), tokenizer)
    # Make end-of-text likelier than one word in 263, so that answers end at different lengths.
    model.lm_head.weight.data[tokenizer.eos_token_id] *= 3
    return model.eval(), tokenizer


def random_coconut(seed=0, **values):
    return random_gpt2(COCONUT, seed, **values)


def random_codi(seed=0, projector=True, **values):
    return random_gpt2(CODI, seed, projector=projector, projector_hidden_size=24, **values)


def random_llama(cls, seed=0, **values):
    """A small random backbone on LLaMA, as ``random_gpt2``. In float64: it magnifies rounding."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(cls)
    values = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 96,
    } | values
    config = LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, bos_token_id=1, **values)
    model = set_token_ids(combine(cls, "llama")(config), tokenizer)
    model.lm_head.weight.data[tokenizer.eos_token_id] *= 3
    return model.double().eval(), tokenizer


def random_colar(seed=0, **values):
    """A small random CoLaR. Some of its trajectories stop early, some late, some at the limit."""
    values = {
        "max_position_embeddings": 128,
        "latent_intermediate_size": 24,
        "latent_embedding_std": 0.3,
    } | values
    model, tokenizer = random_llama(CoLaR, seed, **values)
    model.lm_head.weight.data[model.config.end_latent_token_id] *= 2
    return model, tokenizer


RANDOM = {
    "coconut": random_coconut,
    "codi": random_codi,
    "codi without projector": partial(random_codi, projector=False),
    "colar": random_colar,
    "coconut llama": partial(random_llama, COCONUT),
    "codi llama": partial(random_llama, CODI, projector=True, projector_hidden_size=24),
}
LLAMAS = ("colar", "coconut llama", "codi llama")
# Positions enough for the longest questions of the tiny benchmark.
LONG = {
    "coconut": {"n_positions": 160},
    "codi": {"n_positions": 160},
    "colar": {"max_position_embeddings": 256},
    "codi llama": {"max_position_embeddings": 256},
}


def save_checkpoint(folder, model, tokenizer):
    """Writes a checkpoint in the published layout; returns its folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_random_checkpoint(name, folder):
    """A small random checkpoint of a backbone, in float32, as the commands load it."""
    model, tokenizer = RANDOM[name](**LONG[name])
    return save_checkpoint(folder, model.float(), tokenizer)


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    """Accelerate keeps device and precision for a whole process; a test must not see another's."""
    yield
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def coconut():
    return random_coconut()


# CODI without projector computes what COCONUT does.
QUICK = [pytest.param(name, marks=pytest.mark.quick) for name in ("coconut", "codi", "colar")]


@pytest.fixture(scope="session", params=QUICK)
def backbone(request):
    """Each backbone in turn: a small random model and its tokenizer. Marks its tests as quick."""
    return RANDOM[request.param]()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The folder of a small random COCONUT checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoints") / "random-coconut"
    return save_checkpoint(folder, *random_coconut())


def random_reward_model(backbone, seed=1):
    """A small random reward model of the architecture of ``backbone``, for its thoughts."""
    torch.manual_seed(seed)
    config = type(backbone.config).from_dict(backbone.config.to_dict())
    return LATENT_RMS[config.model_type](config).to(backbone.dtype).eval()


def random_latent_rm(seed=1, **values):
    """A small random reward model for the thoughts of ``random_coconut``."""
    torch.manual_seed(seed)
    values = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96} | values
    config = GPT2Config(
        vocab_size=len(build_tokenizer(COCONUT)),
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=1,
        **values,
    )
    return GPT2LatentRM(config).eval()


@contextmanager
def raises_user_error(*parts, match=None):
    """Expects a UserError of one line that holds ``parts`` and matches the pattern ``match``."""
    with pytest.raises(UserError, match=match) as error:
        yield
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message
