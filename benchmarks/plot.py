"""Draws results.json as the picture that docs/performance.md shows."""

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "messages"  # the same numbers give the same file

from matplotlib import pyplot as plt  # noqa: E402 - the backend is chosen first

COLOURS = {"granian": "#1f6f8b", "product": "#7fb0c2", "opponent": "#c9cdd2"}
NAMES = {"granian": "this API, Granian", "product": "this API, gunicorn", "opponent": "FastAPI + SQLModel"}


def draw(results: dict[str, Any], file: Path) -> None:
    """Requests a second of all, on a logarithmic scale, with the least and the most of the rounds as whiskers."""
    works = [work for work in results["works"].values() if COLOURS.keys() <= work.keys()]
    figure, axes = plt.subplots(figsize=(8, 0.8 * len(works) + 1.2))
    for offset, who in zip((-0.28, 0, 0.28), COLOURS, strict=True):
        rates = [work[who]["rate"] for work in works]
        rounds = [[each["rate"] for each in work[who]["rounds"]] for work in works]
        # The median is rounded, and may lie beyond the rounds by that much.
        error = [
            [max(0.0, middle - min(each)) for middle, each in zip(rates, rounds, strict=True)],
            [max(0.0, max(each) - middle) for middle, each in zip(rates, rounds, strict=True)],
        ]
        places = [place + offset for place in range(len(works))]
        bars = axes.barh(
            places, rates, 0.26, xerr=error, label=NAMES[who], color=COLOURS[who], error_kw={"lw": 1, "ecolor": "#555"}
        )
        axes.bar_label(bars, [f" {value:,.0f}" for value in rates], padding=6, fontsize=8)
    axes.set_yticks(range(len(works)), [work["title"] for work in works])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel("requests a second (median of the rounds; whiskers: least and most)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
