"""Lengths of a corpus as a PNG."""

from __future__ import annotations

from pathlib import Path

from trainer.data.stats import Counts, histogram
from trainer.errors import NotReady


def save_lengths(counts: Counts, path: Path) -> None:
    """A histogram of tokens if they were counted, else of words. The bytes hold no time."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NotReady("a picture needs matplotlib", hint="pip install 'vlaunch[data]'") from error
    unit, lengths = ("tokens", counts.token_lengths) if counts.token_lengths else ("words", counts.lengths)
    buckets = histogram(lengths)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.bar(
        [f"{b.low:,}-\n{b.high:,}" for b in buckets], [b.conversations for b in buckets], color="#3b6ea5"
    )
    axes.set_xlabel(unit)
    axes.set_ylabel("conversations")
    axes.set_title(
        f"{counts.conversations:,} conversations, {sum(k * v for k, v in lengths.items()):,} {unit}"
    )
    axes.tick_params(axis="x", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png", dpi=120, metadata={"Software": None})
