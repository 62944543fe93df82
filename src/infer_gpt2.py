"""Samples latent trajectories with COCONUT or CODI (GPT-2) and votes: python -m src.infer_gpt2 --help"""

from src.inference.commands import infer
from src.inference.settings import InferenceSettings
from utils.cli import parse_flags
from utils.errors import reports_user_errors


@reports_user_errors
def main():
    infer(parse_flags(InferenceSettings, "src.infer_gpt2", __doc__))


if __name__ == "__main__":
    main()
