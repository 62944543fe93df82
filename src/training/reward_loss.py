"""Old import path of tests/test_latent_rm.py: remove with it."""

from src.training.losses.latent_rm import bce, contrastive  # noqa: F401
