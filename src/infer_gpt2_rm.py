"""Chooses among latent trajectories of COCONUT or CODI by LatentRM: python -m src.infer_gpt2_rm --help"""

from src.inference.commands import infer_with_reward
from src.inference.settings import RewardSettings
from utils.cli import parse_flags
from utils.errors import reports_user_errors


@reports_user_errors
def main():
    infer_with_reward(parse_flags(RewardSettings, "src.infer_gpt2_rm", __doc__))


if __name__ == "__main__":
    main()
