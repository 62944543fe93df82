"""From decoded text to a number, and whether it is right."""

import math
import re


def parse_number(text):
    """The float that ``text`` is, commas removed, or None when it is no finite number."""
    text = text.replace(",", "").strip()
    if "_" in text:  # float() would take 1_000
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def format_number(value):
    """A number as data files write it: ``17`` for 17 and 17.0, ``2.5`` for 2.5."""
    value = float(value)
    return str(int(value)) if value.is_integer() else repr(value)


def after_hash(text):
    """COCONUT's form ``... ### 18``: the number after the last ``#``; None without one."""
    return parse_number(text.rpartition("#")[2]) if "#" in text else None


def last_number(text):
    """CODI's form, free text: the last number in it; None without one."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))
    return parse_number(numbers[-1]) if numbers else None


def after_answer(text):
    """CoLaR's form ``Answer:18``: the number after the last ``Answer:``; None without one."""
    parts = re.split(r"answer\s*:", text, flags=re.IGNORECASE)
    return parse_number(parts[-1]) if len(parts) > 1 else None
