"""When the commands that report by --json show a progress bar."""

from typing import Any


def hides_bar(options: dict[str, Any]) -> bool | None:
    """The option `disable` of tqdm, from the options of a command. None hides the bar where there is no terminal."""
    return options["verbosity"] == 0 or options["json"] or None
