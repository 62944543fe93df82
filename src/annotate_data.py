"""Labels latent trajectories by stochastic rollouts."""

from src.runs.commands import run_command
from utils.errors import reports_user_errors


@reports_user_errors
def main():
    run_command("src.annotate_data", __doc__)


if __name__ == "__main__":
    main()
