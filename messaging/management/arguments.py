"""Readers of command-line arguments that commands share: a value within its bounds, or a message that says them."""

from argparse import ArgumentTypeError
from collections.abc import Callable


def whole_number(minimum: int, maximum: int) -> Callable[[str], int]:
    """A reader of a whole number from `minimum` to `maximum`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if not minimum <= value <= maximum:
            raise ArgumentTypeError(f"{text!r} is not a whole number from {minimum:,} to {maximum:,}.")
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
