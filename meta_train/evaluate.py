"""A checkpoint on a suite of tasks: what ``metaopt evaluate`` does."""

import json
import time
from pathlib import Path

import jax

from metaopt import __version__, checkpoint
from metaopt.errors import UserError, unknown
from metaopt.evaluation import compare, heldout, report
from metaopt.evaluation.baselines import BASELINES
from tasks import suites


def evaluate(
    name: str, suite: str, baselines: list[str], settings: compare.Settings, out: Path, only: list[str] | None = None
) -> Path:
    """Compares a checkpoint with tuned baselines and writes ``results.jsonl`` to ``out``.

    Args:
      name: of a checkpoint, or its folder.
      suite: see ``tasks.suites``.
      baselines: names; the first is the reference that targets come from.
      settings: steps, seeds, problems drawn.
      out: folder for the results; what it holds of an earlier evaluation is replaced.
      only: names of tasks, where not the whole suite is wanted.

    Raises:
      UserError: for an unknown name, or a folder that cannot be written.
    """
    found, tasks = checkpoint.read(name), suites.build(suite)
    for task in only or []:
        if task not in [t.name for t in tasks]:
            raise unknown(f"task of {suite}", task, [t.name for t in tasks])
    for baseline in baselines:
        if baseline not in BASELINES:
            raise unknown("baseline", baseline, BASELINES)
    tasks = [t for t in tasks if only is None or t.name in only]
    label = Path(name).name
    entrants = [compare.baseline(b, BASELINES[b]) for b in baselines]
    entrants.append(compare.learned(label, lambda n: found.optimizer.bind(found.theta, num_steps=n)))
    trained_on = found.manifest.get("meta_trained_on")
    header = {
        "title": f"{label} on {suite}",
        "learned": [label],
        "reference": baselines[0],
        "suite": suite,
        "num_steps": settings.num_steps,
        "seeds": settings.seeds,
        "tuning_seeds": settings.tuning_seeds,
        "draws": settings.draws,
        "rates": {b: BASELINES[b].rates for b in baselines},
        "novelty": {t.name: heldout.novelty(t.traits(), trained_on) for t in tasks},
        "weights_sha256": found.manifest["sha256"],
        "versions": {"metaopt": __version__, "jax": jax.__version__},
        "device": jax.devices()[0].device_kind,
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / report.RESULTS).open("w", buffering=1)
    except OSError as error:
        raise UserError(f"cannot write results to {out}: {error.strerror}") from error
    with file:
        file.write(json.dumps(header) + "\n")
        for i, task in enumerate(tasks):
            began = time.monotonic()
            print(f"[{i + 1}/{len(tasks)}] {task.name} ...", end=" ", flush=True)
            for row in compare.compare(task, entrants, settings):
                file.write(json.dumps(row) + "\n")
            print(f"{time.monotonic() - began:.0f} s", flush=True)
    return out
