"""From decoded text to a number, and whether it is right."""

import math
import re
from decimal import ROUND_HALF_UP, Context, Decimal
from functools import lru_cache

# Without traps: a rounding that these digits don't suffice for gives NaN, which equals nothing.
_ROUNDING = Context(prec=1000, rounding=ROUND_HALF_UP, traps=[])


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


def is_right(number, answer):
    """Whether a predicted number, or None, meets the right answer: a text, such as "18" or "4.33".

    Equal floats do. A right answer that is no integer may have been rounded, so it is also met by a
    prediction that equals it when rounded to as many decimals, half up: 4.333 and 4.325 meet
    "4.33". The prediction's decimal text is rounded, since the float 1.0045 is a little less than
    1.0045 and would become 1.004. None (unparsable) is wrong.
    """
    if number is None:
        return False
    value, rounded = _parsed_answer(answer)
    if number == value or rounded is None:
        return bool(number == value)
    return _ROUNDING.quantize(Decimal(repr(float(number))), rounded) == rounded


@lru_cache(maxsize=4096)
def _parsed_answer(answer):
    """The right answer as a float, and as a decimal with its number of decimals if no integer."""
    value = parse_number(answer)
    return value, None if value.is_integer() else Decimal(answer.replace(",", "").strip())


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
