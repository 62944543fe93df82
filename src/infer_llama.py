"""Samples latent trajectories of a backbone on LLaMA and votes."""

from src.runs.commands import run_command
from utils.errors import reports_user_errors


@reports_user_errors
def main():
    run_command("src.infer_llama", __doc__)


if __name__ == "__main__":
    main()
