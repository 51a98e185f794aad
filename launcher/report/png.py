"""The loss curve as a PNG. matplotlib comes with the extra [data] and is imported only here."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from launcher.errors import require_extra
from launcher.output import write_whole
from launcher.report.charts import smoothed
from launcher.runs.runview import RunRecord

# The attempts' hues of theme.py's light page: a PNG has no dark mode.
_HUES = ("#4a3aa7", "#e2571e", "#0f9468", "#cf4a83")


def write_png(record: RunRecord, path: Path) -> None:
    """Training loss (each step faint, running mean clear), held-out loss, and where attempts resumed."""
    require_extra("data", "matplotlib", needed_for="a PNG of the loss curve")
    # The figure's own canvas: pyplot would look for a display and keep global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    means = smoothed([step.loss for step in record.steps])
    begin = 0
    for index, step in enumerate(record.steps):
        last = index + 1 == len(record.steps)
        if not last and record.steps[index + 1].attempt == step.attempt:
            continue
        hue = _HUES[(step.attempt - 1) % len(_HUES)]
        shown = range(
            max(0, begin - 1), index + 1
        )  # reaching back to the point that the attempt went on from
        numbers = [record.steps[i].step for i in shown]
        axes.plot(numbers, [record.steps[i].loss for i in shown], color=hue, alpha=0.3, linewidth=0.8)
        axes.plot(numbers, [means[i] for i in shown], color=hue, linewidth=2)
        if not last:
            axes.axvline(step.step, color="#8f8e87", linewidth=0.8, linestyle=(0, (4, 3)))
        begin = index + 1
    if record.evals:
        evals = sorted(record.evals, key=lambda item: item.step)
        axes.plot([e.step for e in evals], [e.loss for e in evals], "o:", color="#12120f",
                  markerfacecolor="white", linewidth=1, label="held-out loss")  # fmt: skip
        axes.legend(frameon=False)
    axes.set(xlabel="step", ylabel="loss", title=record.run_id)
    axes.grid(color="#e1e0d9", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    write_whole(path, drawn.getvalue())
