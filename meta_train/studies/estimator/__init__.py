"""The estimators side by side: variance, cosine at equal cost, a chaotic regression.

``measure`` gives every number, ``write`` keeps them in study.json and draws study.png
from them. Some minutes on two CPU cores.
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
    toy_windows: tuple[int, ...] = (1, 2, 8, 32, 128)  # numbers of windows, of 128 steps
    toy_pairs: int = 2048
    learned_windows: tuple[int, ...] = (1, 8, 64)  # of 64 steps
    learned_pairs: int = 384
    outer_steps: tuple[int, int] = (30, 100)  # of meta-training before the learned optimizer is studied
    small_sigma: float = 1e-3  # where the learned optimizer's losses are linear in the perturbations
    sigma: float = 1e-2  # what it is meta-trained with
    cosine_window: int = 8
    cosine_seconds: float = 10.0  # for each estimator
    truth_samples: int = 256
    regression_steps: int = 2000
    regression_points: int = 50
    regression_seeds: int = 5


def measure(settings: Settings) -> dict[str, Any]:
    """All that is drawn, as plain JSON values of four digits."""
    began = time.perf_counter()
    fresh = problems.learned_optimizer(settings.small_sigma)
    (early, later), losses = problems.meta_trained(fresh, settings.outer_steps, settings.sigma)
    report = lambda what: print(f"{time.perf_counter() - began:4.0f} s  {what}", flush=True)
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
    influence = variance.influences(studied)
    both = lambda studied: {
        "es_single": variance.study("es_single", studied, influence, num_windows, num_pairs),
        # With one window PES is ES-Single.
        "pes": variance.study("pes", studied, influence, num_windows[1:], num_pairs),
    }
    result = {
        "num_meta_parameters": influence.shape[-1],
        "horizon": studied.horizon,
        "sigma": studied.sigma,
        "measured": both(studied),
        "pes_in_theory": variance.theory(influence),
    }
    if larger_sigma:
        result["measured_at_larger_sigma"] = both(studied._replace(sigma=larger_sigma))
    return result


def prepare(folder: Path) -> None:
    """Makes the folder, before minutes are spent on what goes there. Raises UserError if it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another with --out") from error


def write(folder: Path, results: dict[str, Any]) -> Path:
    """study.json, and study.png drawn from it; the path of the picture."""
    (folder / DATA).write_text(json.dumps(results) + "\n")
    return draw(folder)


def draw(folder: Path) -> Path:
    """Draws study.png again from the study.json of a folder."""
    path = folder / PICTURE
    path.write_bytes(plots.picture(json.loads((folder / DATA).read_text())))
    return path


def summary(results: dict[str, Any]) -> str:
    """What the picture shows, in a few lines."""
    lines = ["variance at the most windows, over that of one window:"]
    for name, studied in results["variance"].items():
        for kind in variance.KINDS:
            grown = [f"{e} x {growth(studied['measured'], e, kind):.3g}" for e in ("es_single", "pes")]
            lines.append(f"  {name}, {kind}: {', '.join(grown)}")
    lines.append("cosine to the gradient of whole episodes at equal cost:")
    curves = results["cosine"]["estimators"]
    limit = min(curve["cost_of_a_sample"] * curve["num_samples"][-1] for curve in curves.values())
    for name, curve in sorted(curves.items(), key=lambda item: -cosine.at_cost(item[1], limit)):
        lines.append(f"  {name} {cosine.at_cost(curve, limit):.2f}")
    lines.append(f"toy regression, final meta-loss (start {results['regression']['start']:.3g}):")
    for name, run in results["regression"]["estimators"].items():
        lines.append(f"  {name} {np.median([seed[-1] for seed in run['meta_loss']]):.3g}")
    return "\n".join(lines)


def growth(measured: dict[str, Any], estimator: str, kind: str) -> float:
    """Variance at the largest number of windows over that of one window, where the two are the same."""
    return measured[estimator][kind][-1][0] / measured["es_single"][kind][0][0]


def rounded(value: Any, digits: int = 4) -> Any:
    """The same tree with floats of so many digits and no arrays."""
    if isinstance(value, dict):
        return {name: rounded(v, digits) for name, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [rounded(v, digits) for v in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float | np.floating) else value
