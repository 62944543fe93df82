"""Samples latent trajectories with CoLaR (LLaMA) and votes: python -m src.infer_llama --help"""

from src.inference.commands import infer
from src.inference.settings import LlamaInferenceSettings
from utils.cli import parse_flags
from utils.errors import reports_user_errors


@reports_user_errors
def main():
    infer(parse_flags(LlamaInferenceSettings, "src.infer_llama", __doc__))


if __name__ == "__main__":
    main()
