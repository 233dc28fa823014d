"""Draws the numbers of study.json as one picture."""

import io
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter


class Style(NamedTuple):
    """The line of an estimator."""

    color: str
    linestyle: Any
    linewidth: float


# Biased estimators are dashed.
STYLES = {
    "es_single": Style("#0072b2", "-", 2.6),
    "pes": Style("#d55e00", "-", 2.6),
    "gpes": Style("#e69f00", "-", 1.4),
    "es_gen": Style("#cc79a7", "-", 1.4),
    "es": Style("#56b4e9", "-", 1.4),
    "dodge": Style("#009e73", "-", 1.4),
    "pes_analytic": Style("#8c564b", "-", 1.4),
    "backprop": Style("#000000", "-", 1.4),
    "rtrl": Style("#7b3294", "-", 1.4),
    "truncated_es": Style("#b59a00", "--", 1.8),
    "tbptt": Style("#777777", "--", 1.8),
}
KINDS = {"window": "estimate of one window", "episode": "sum over an episode"}
SHADED = ("es_single", "pes")  # estimators whose quantiles are shaded
ON_THE_SURFACE = ("es_single", "pes", "truncated_es", "tbptt", "backprop")


def picture(results: dict[str, Any]) -> bytes:
    """The picture as PNG bytes: variance in the upper two rows, cosine and regression in the third."""
    figure = Figure(figsize=(12.5, 10.2), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(2, 1.15))
    upper, lower = (figure.add_subfigure(cell) for cell in (grid[0], grid[1]))
    axes = upper.subplots(2, len(results["variance"]))
    for column, (name, studied) in enumerate(results["variance"].items()):
        axes[1, column].sharey(axes[0, column])
        for row, kind in enumerate(KINDS):
            _variance(axes[row, column], studied, kind)
        axes[1, column].set_xlabel("windows per episode")
        size, horizon = studied["num_meta_parameters"], studied["horizon"]
        axes[0, column].set_title(f"{name}\n{size} meta-parameter{'s' * (size > 1)}, {horizon} steps", fontsize=9)
    for row, label in enumerate(KINDS.values()):
        axes[row, 0].set_ylabel(f"{label}\nvariance of a pair / |gradient|²", fontsize=9)
    axes[0, 0].text(0.04, 0.95, "lines: closed form\nmarks: measured, 95 %", va="top", **_small(axes[0, 0]))
    small, larger = results["settings"]["small_sigma"], results["settings"]["sigma"]
    axes[0, 2].text(0.04, 0.95, f"filled: sigma {small:g}\nopen: sigma {larger:g}", va="top", **_small(axes[0, 2]))
    below = lower.subplots(1, 3)
    _cosine(below[0], results["cosine"])
    _losses(below[1], results["regression"])
    _surface(lower, below[2], results["regression"])
    handles = [Line2D([], [], **style._asdict(), label=name) for name, style in STYLES.items()]
    lower.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=9, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _variance(axes: Axes, studied: dict[str, Any], kind: str) -> None:
    axes.axhline(studied["num_meta_parameters"] + 1, color=STYLES["es_single"].color, linewidth=1)
    curve = studied["pes_in_theory"]
    axes.plot(curve["num_windows"], curve[kind], color=STYLES["pes"].color, linewidth=1)
    for measured, fill in (("measured_at_larger_sigma", "white"), ("measured", None)):
        for name, marker in (("pes", "o"), ("es_single", "s")):
            if measured in studied:
                points = studied[measured][name]
                value, low, high = np.array(points[kind]).T
                axes.errorbar(points["num_windows"], value, [value - low, high - value], fmt=marker, markersize=5,
                              color=STYLES[name].color, markerfacecolor=fill, capsize=2)  # fmt: skip
    axes.set_xscale("log", base=4)
    axes.xaxis.set_major_formatter("{x:g}")
    _log_axis(axes)


def _log_axis(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, linewidth=0.5)


def _small(axes: Axes) -> dict[str, Any]:
    return {"transform": axes.transAxes, "fontsize": 8, "color": "#444444"}


def _cosine(axes: Axes, results: dict[str, Any]) -> None:
    for name, curve in results["estimators"].items():
        cost = np.array(curve["num_samples"]) * curve["cost_of_a_sample"]
        median, low, high = np.array(curve["cosine"]).T
        axes.plot(cost, median, **STYLES[name]._asdict())
        if name in SHADED:
            axes.fill_between(cost, low, high, color=STYLES[name].color, alpha=0.12, linewidth=0)
    axes.axhline(0, color="#999999", linewidth=0.6)
    axes.set(xscale="log", ylim=(-0.42, 1.03), xlabel="cost, in inner steps of one member", ylabel="cosine")
    axes.set_title("early learned optimizer: cosine to the\ngradient of whole episodes", fontsize=9)
    axes.grid(alpha=0.3, linewidth=0.5)


def _losses(axes: Axes, results: dict[str, Any]) -> None:
    for name, result in results["estimators"].items():
        losses = np.array(result["meta_loss"])
        axes.plot(results["outer_steps"], np.median(losses, axis=0), **STYLES[name]._asdict())
        low, high = losses.min(axis=0), losses.max(axis=0)
        axes.fill_between(results["outer_steps"], low, high, color=STYLES[name].color, alpha=0.1, linewidth=0)
    lowest = {name: np.min(result["meta_loss"]) for name, result in results["estimators"].items()}
    stuck = [name for name, loss in lowest.items() if loss > 0.9 * results["start"]]
    axes.text(0.97, 0.45, "stuck at the top:\n" + ", ".join(stuck), ha="right", **_small(axes))
    axes.set(xlabel="outer steps", ylabel="meta-loss at theta")
    axes.set_title("toy regression", fontsize=9)
    _log_axis(axes)


def _surface(figure: SubFigure, axes: Axes, results: dict[str, Any]) -> None:
    surface = results["surface"]
    extent = (surface["low"], surface["high"]) * 2
    image = axes.imshow(np.array(surface["meta_loss"]), origin="lower", extent=extent, cmap="bone", aspect="auto")
    figure.colorbar(image, ax=axes, label="meta-loss")
    for name in ON_THE_SURFACE:
        x, y = np.array(results["estimators"][name]["theta_of_seed_0"]).T
        axes.plot(x, y, **STYLES[name]._asdict())
    axes.plot(*results["theta_at_the_start"], "o", color="white", markeredgecolor="black", markersize=7)
    axes.set(xlabel="theta_0, log rate at the start", ylabel="theta_1, log rate at the end")
    axes.set_title("toy regression: the way of theta", fontsize=9)
