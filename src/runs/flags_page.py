"""docs/flags.md, made from the commands' dataclasses: python -m src.runs.flags_page"""

import textwrap
from pathlib import Path

from src.runs.arguments import ReproduceArguments, TuningArguments
from src.runs.commands import COMMANDS
from utils.cli import flag_actions
from utils.files import write_text
from utils.release import IGNORED

PAGE = Path(__file__).parents[2] / "docs" / "flags.md"
HEADER = """# Flags

Made by `python -m src.runs.flags_page`. A section lists the flags that no section above it has.
On every command `--config FILE.yaml` gives flags by a file; the command line wins over it. The
trainings take any key of their recipe as `--KEY=VALUE`, over the file. Of several names of a flag
the first is ours; the others are those of the paper's public release, which has its own section
[at the end](#names-of-the-public-release).
"""
RELEASE = """## Names of the public release

Its command lines run here as they are. Some of its numbers count something else:

- `max_new_tokens` counts the tokens of the answer. The release counts thoughts and the
  end-of-thinking token too.
- A batch size counts questions; a batch of `--batch_size` questions holds `--n_samples` times as
  many rows. The release counts rows in `infer_gpt2_rm`, in `annotate_data` (also of rollouts) and
  in `per_device_train_batch_size`. No sample depends on the batch size.
- `--num_return_sequences` of beam search may be B x C, the trajectories that a question costs, or
  1, the answer that the release returns.

A recipe of `src.train` may have its keys:

- `loss_type`: `loss`; `contrastive` (`ce` in the release) or `bce`, with weight 1.
- `train_dataset`: `train_pools`; a folder or a list.
- `valid_dataset`: `eval_pools`; a folder, a list, or names with folders. A pool of N trajectories
  a question without a name is `test_n_N`.
- `generator_model_id`: `model_id`, which also gives the starting weights.
- `model_family`: `model_type` if it is a backbone; `gpt2` and `llama` have no effect.
- `eval_frequency`: evaluations an epoch. `eval_steps` and `save_steps` become 1 / (`eval_frequency`
  x `num_train_epochs`) of all steps, and the best checkpoint is kept.
- `warmup_ratio`: `warmup_steps`, which below 1 is a share of all steps.

The scripts take `Ns` as `NS`, `SEEDs` as `SEEDS` (`SEED` where there is one), `batch_sizes` as
`BATCH_SIZE` (of several the smallest), and `MODEL_TYPE` as `BACKBONE`; `run_tests.sh` then runs the
models of this backbone.

These names are accepted, in the commands that run a model and in trainings where they make sense,
and have no effect, which a line on stderr says. Where a value is given, another one is an error.

"""


def flags_page():
    """The text of the page: a section for each command."""
    sections, listed = [HEADER], set()
    commands = {name: command.arguments for name, command in COMMANDS.items()}
    commands |= {"src.tune_sampler": TuningArguments, "src.reproduce": ReproduceArguments}
    for name, arguments in commands.items():
        lines = [_line(action) for action in flag_actions(arguments)]
        new = [line for line in lines if line not in listed]
        listed |= set(lines)
        summary = arguments.__doc__.splitlines()[0]
        count = len(lines) - len(new)
        shared = f"\n{count} of them are listed above." if count else ""
        sections.append(f"## {name}\n\n{summary}{shared}\n\n" + "".join(new))
    sections.append(RELEASE + "".join(map(_ignored_line, IGNORED.items())))
    return "\n".join(section.rstrip() + "\n" for section in sections)


def _ignored_line(item):
    name, entry = item
    only = "" if entry.only is None else f" {str(entry.only).lower()}"
    return _wrapped(f"- `{name}{only}`: {entry.reason}.")


def _line(action):
    """A flag with its aliases, its meaning, its choices and its default, in lines of the page."""
    name, *aliases = [option for option in action.option_strings if "-" not in option[2:]]
    names = ", ".join(f"`{option}`" for option in (name, *aliases))
    parts = [f"{names}: {action.help}"]
    if action.choices:
        parts.append("one of " + ", ".join(f"`{choice}`" for choice in action.choices))
    if isinstance(action.default, list):
        parts.append(f"default `{' '.join(map(str, action.default))}`")
    elif action.default is not None:
        parts.append(f"default `{action.default}`")
    return _wrapped(f"- {'; '.join(parts)}.")


def _wrapped(line):
    return textwrap.fill(line, 100, subsequent_indent="  ", break_on_hyphens=False) + "\n"


if __name__ == "__main__":
    write_text(PAGE, flags_page())
