"""Converts a checkpoint of official CODI, Meta's COCONUT or the release's LatentRM.

The result has the layout that all commands load. Weights are read without running foreign code.
"""

from src.models import BACKBONES
from src.models.conversion import DEFAULT_BASES, convert
from utils.cli import Parser
from utils.errors import reports_user_errors


@reports_user_errors
def main():
    parser = Parser(prog="src.convert_checkpoint", description=__doc__)
    parser.add_argument("source", help="folder, file or hub id: .safetensors, .bin, .pt")
    parser.add_argument("target", help="a new folder")
    bases = " or ".join(DEFAULT_BASES.values())
    parser.add_argument(
        "--base",
        help="folder or hub id of the plain model that it was trained from, for config and "
        f"tokenizer; default: {bases}, by the weights; a LatentRM: the source",
    )
    parser.add_argument(
        "--lora_alpha",
        type=float,
        default=32.0,
        help="CODI: adapters of rank r are merged with the factor alpha / r; default 32",
    )
    parser.add_argument(
        "--generator_type",
        choices=BACKBONES,
        help="LatentRM: the backbone that it was trained for",
    )
    print(convert(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
