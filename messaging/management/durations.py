"""Reads spans of time on the command line: `15m`, `12h`, `90d`."""

import re
from argparse import ArgumentTypeError
from datetime import timedelta

_SPAN = re.compile(r"([1-9][0-9]{0,5})([smhdw])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def duration(text: str) -> timedelta:
    """The span that a whole number and a unit (s, m, h, d, w) write."""
    found = _SPAN.fullmatch(text)
    if found is None:
        raise ArgumentTypeError(f"{text!r} is no span of time. Write a number and s, m, h, d or w, such as 15m or 90d.")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})
