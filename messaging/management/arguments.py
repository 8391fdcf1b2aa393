"""Types of command-line arguments: each returns a valid value, or raises an error that names the valid ones."""

import os
import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from datetime import timedelta

_SPAN = re.compile(r"([1-9][0-9]{0,5})([smhdw])", re.ASCII)
_LONGEST_SPAN = timedelta(days=36_500)  # so that the instant that it leads to exists
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def whole_number(maximum: int) -> Callable[[str], int]:
    """A reader of a whole number from 1 to `maximum`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = 0
        if not 1 <= value <= maximum:
            raise ArgumentTypeError(f"{text!r} is not a whole number from 1 to {maximum:,}.")
        return value

    return read


def ratio(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"{text!r} is not a number from 0 to 1, such as 0.5.")
    return value


def duration(text: str) -> timedelta:
    """A span of time, such as `15m` or `90d`: a whole number and a unit (s, m, h, d, w)."""
    found = _SPAN.fullmatch(text)
    span = timedelta(**{_UNITS[found[2]]: int(found[1])}) if found else None
    if span is None or span > _LONGEST_SPAN:
        raise ArgumentTypeError(
            f"{text!r} is no span of time up to {_LONGEST_SPAN.days} days. Write a number and s, m, h, d or w, such as"
            " 15m or 90d."
        )
    return span


def utf8(text: str) -> str:
    """The argument decoded as UTF-8, whatever the locale. Raises ValueError, which argparse reports."""
    return os.fsencode(text).decode()
