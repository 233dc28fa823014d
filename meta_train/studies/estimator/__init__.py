"""Estimator study: variance, cosine at equal cost, and a chaotic regression, for all estimators.

``measure`` computes all numbers, ``write`` stores them in study.json and draws study.png
from them. It takes some minutes on two CPU cores.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from meta_train.studies.estimator import cosine, plots, problems, regression, variance
from meta_train.studies.estimator.problems import Studied
from metaopt.errors import UserError

DATA, PICTURE = "study.json", "study.png"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes of the study."""

    toy_windows: tuple[int, ...] = (1, 2, 8, 32, 128)  # numbers of windows in the 128 steps of the toy problems
    toy_pairs: int = 2048  # antithetic pairs for each number of windows
    learned_windows: tuple[int, ...] = (1, 8, 64)  # numbers of windows in the 64 steps of the learned optimizer
    learned_pairs: int = 384  # antithetic pairs for each number of windows
    outer_steps: tuple[int, int] = (30, 100)  # outer steps after which the learned optimizer is studied
    small_sigma: float = 1e-3  # sigma at which the losses of the learned optimizer are linear in the perturbations
    sigma: float = 1e-2  # sigma with which the learned optimizer is meta-trained
    cosine_window: int = 8  # inner steps of a window in the cosine study
    cosine_seconds: float = 10.0  # time for each estimator in the cosine study
    truth_samples: int = 256  # samples of backpropagation for the true gradient
    regression_steps: int = 2000  # outer steps of the toy regression
    regression_points: int = 50  # points at which its meta-loss is recorded
    regression_seeds: int = 5  # seeds of each estimator in the toy regression


def measure(settings: Settings) -> dict[str, Any]:
    """Computes all results, as JSON values with four digits."""
    began = time.perf_counter()

    def report(text: str) -> None:
        print(f"{time.perf_counter() - began:4.0f} s  {text}", flush=True)

    fresh = problems.learned_optimizer(settings.small_sigma)
    (early, later), losses = problems.meta_trained(fresh, settings.outer_steps, settings.sigma)
    report(f"meta-trained a learned optimizer: meta-loss {', '.join(f'{loss:.3g}' for loss in losses)}")
    results: dict[str, Any] = {
        "jax": jax.__version__,
        "settings": dataclasses.asdict(settings),
        "meta_loss_of_the_learned_optimizer": dict(zip(("fresh", "early", "later"), losses, strict=True)),
    }
    toys = (settings.toy_windows, settings.toy_pairs)
    learned = (settings.learned_windows, settings.learned_pairs, settings.sigma)
    results["variance"] = {
        "quadratic": _variance(problems.quadratic(), *toys),
        "influence balancing": _variance(problems.influence_balancing(), *toys),
        "learned optimizer, early": _variance(early, *learned),
        "learned optimizer, later": _variance(later, *learned),
    }
    report("variance")
    results["cosine"] = cosine.study(
        early._replace(sigma=settings.sigma),
        settings.cosine_window,
        settings.cosine_seconds,
        settings.truth_samples,
    )
    report("cosine")
    results["regression"] = regression.study(
        settings.regression_steps, settings.regression_points, settings.regression_seeds
    )
    report("regression")
    return rounded(results | {"seconds": time.perf_counter() - began})


def _variance(
    studied: Studied,
    num_windows: tuple[int, ...],
    num_pairs: int,
    larger_sigma: float = 0.0,
) -> dict[str, Any]:
    """Variance on one problem; with ``larger_sigma`` also at that sigma."""
    influence = variance.influences(studied)

    def both_estimators(studied: Studied) -> dict[str, Any]:
        return {
            "es_single": variance.study("es_single", studied, influence, num_windows, num_pairs),
            # With one window PES is ES-Single.
            "pes": variance.study("pes", studied, influence, num_windows[1:], num_pairs),
        }

    result = {
        "num_meta_parameters": influence.shape[-1],
        "horizon": studied.horizon,
        "sigma": studied.sigma,
        "measured": both_estimators(studied),
        "pes_in_theory": variance.theory(influence),
    }
    if larger_sigma:
        result["measured_at_larger_sigma"] = both_estimators(studied._replace(sigma=larger_sigma))
    return result


def prepare(folder: Path) -> None:
    """Makes the folder of the results before minutes of computation. Raises UserError if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another with --out") from error


def write(folder: Path, results: dict[str, Any]) -> Path:
    """Writes study.json and draws study.png from it; returns the path of the picture."""
    (folder / DATA).write_text(json.dumps(results) + "\n")
    return draw(folder)


def draw(folder: Path) -> Path:
    """Draws study.png from the study.json in ``folder``; returns the path of the picture."""
    path = folder / PICTURE
    path.write_bytes(plots.picture(json.loads((folder / DATA).read_text())))
    return path


def summary(results: dict[str, Any]) -> str:
    """The main results as a few lines of text."""
    lines = ["variance at the most windows, over that of one window:"]
    for name, studied in results["variance"].items():
        for kind in variance.KINDS:
            growths = [f"{e} x {growth(studied['measured'], e, kind):.3g}" for e in ("es_single", "pes")]
            lines.append(f"  {name}, {kind}: {', '.join(growths)}")
    lines.append("cosine to the gradient of whole episodes at equal cost:")
    curves = results["cosine"]["estimators"]
    limit = min(curve["cost_of_a_sample"] * curve["num_samples"][-1] for curve in curves.values())
    for name, curve in sorted(curves.items(), key=lambda item: -cosine.at_cost(item[1], limit)):
        lines.append(f"  {name} {cosine.at_cost(curve, limit):.2f}")
    lines.append(f"toy regression, final meta-loss (start {results['regression']['start']:.3g}):")
    for name, result in results["regression"]["estimators"].items():
        lines.append(f"  {name} {np.median([losses[-1] for losses in result['meta_loss']]):.3g}")
    return "\n".join(lines)


def growth(measured: dict[str, Any], estimator: str, kind: str) -> float:
    """Variance at the largest number of windows, relative to one window, where PES and ES-Single are the same."""
    return measured[estimator][kind][-1][0] / measured["es_single"][kind][0][0]


def rounded(value: Any, digits: int = 4) -> Any:
    """The same tree with floats of ``digits`` digits and lists in place of arrays."""
    if isinstance(value, dict):
        return {name: rounded(v, digits) for name, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [rounded(v, digits) for v in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float | np.floating) else value
