"""docs/flags.md, made from the commands' dataclasses: python -m src.runs.flags_page"""

import textwrap
from pathlib import Path

from src.runs.arguments import ReproduceArguments, TuningArguments
from src.runs.commands import COMMANDS
from utils.cli import flag_actions
from utils.files import write_text

PAGE = Path(__file__).parents[2] / "docs" / "flags.md"
HEADER = """# Flags

Made by `python -m src.runs.flags_page`. A section lists the flags that no section above it has.
On every command `--config FILE.yaml` gives flags by a file; the command line wins over it.
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
    return "\n".join(section.rstrip() + "\n" for section in sections)


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
    line = f"- {'; '.join(parts)}."
    return textwrap.fill(line, 100, subsequent_indent="  ", break_on_hyphens=False) + "\n"


if __name__ == "__main__":
    write_text(PAGE, flags_page())
