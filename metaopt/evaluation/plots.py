"""Loss curves as SVG text, for HTML reports."""

import io

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from metaopt.evaluation.compare import Row
from metaopt.evaluation.summary import curves


def loss_curves(title: str, methods: dict[str, list[Row]], num_steps: int) -> str:
    """Draws the validation and training losses of all training runs, and their medians.

    Args:
      title: title of the plots.
      methods: rows with phase "report" by method.
      num_steps: steps of a training run.

    Returns:
      SVG text.
    """
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, split in zip(figure.subplots(1, 2, sharey=True), ("valid", "train"), strict=True):
        for i, (name, rows) in enumerate(methods.items()):
            losses = curves(rows, split)
            losses = np.where(np.isfinite(losses), losses, np.nan)
            steps = np.linspace(0, num_steps, losses.shape[1])
            axes.plot(steps, losses.T, color=f"C{i}", alpha=0.2, linewidth=0.7)
            axes.plot(steps, _median(losses), color=f"C{i}", linewidth=2, label=name)
        # Returns are negative losses, which a logarithm would hide.
        positive = all(np.all(curves(rows, split) > 0) for rows in methods.values())
        axes.set(title=f"{title}: {split}", xlabel="steps", yscale="log" if positive else "linear")
        axes.grid(alpha=0.3, which="both", linewidth=0.5)
    figure.axes[0].set_ylabel("loss")
    figure.axes[1].legend(fontsize=8)
    buffer = io.StringIO()
    # With a fixed salt and without a date, the same results give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "metaopt", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def scale(methods: dict[str, list[Row]], split: str) -> str:
    """Logarithmic where all losses are above zero; returns are negative losses, which a logarithm would hide."""
    return "log" if all(np.all(curves(rows, split) > 0) for rows in methods.values()) else "linear"


def _median(losses: np.ndarray) -> np.ndarray:
    """The median over seeds; NaN, which is not drawn, where more than half of the losses are not finite."""
    failed = np.isnan(losses).mean(axis=0) > 0.5
    filled = np.where(np.isnan(losses), np.inf, losses)
    return np.where(failed, np.nan, np.quantile(filled, 0.5, axis=0, method="lower"))
