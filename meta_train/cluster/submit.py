"""What ``metaopt submit`` does: checks the work, then hands it to SLURM with a script of ``slurm/``."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from meta_train import program, recipes, settings
from meta_train.cluster import sweep
from meta_train.evaluation import evaluate
from meta_train.run import directory, mirrors
from metaopt import references
from metaopt.errors import UserError

PYTHON = "METAOPT_PYTHON"  # tells the scripts which Python has metaopt


class Job(NamedTuple):
    """A script of ``slurm/`` with its arguments."""

    script: str
    arguments: list[str]
    name: str
    log: Path  # with %j and the like, as sbatch fills them in
    array: str = ""  # indices, e.g. 0-11%4
    former: bool = False  # begins when the job before it has ended, however it did

    def command(self, options: list[str], former: str) -> list[str]:
        """The words of sbatch; ``options`` are the user's and win."""
        words = ["sbatch", "--parsable", f"--job-name={self.name}", f"--output={self.log}"]
        words += [f"--array={self.array}"] if self.array else []
        words += [f"--dependency=afterany:{former}"] if self.former else []
        return [*words, *options, str(scripts() / self.script), *self.arguments]


def scripts() -> Path:
    """The folder of the batch scripts: in the wheel, or in the tree."""
    package = Path(__file__).parents[1]
    installed = package / "slurm"
    return installed if installed.is_dir() else package.parent / "slurm"


def train(name: str, words: list[str], folder: Path, mirror: str | None = None) -> list[Job]:
    """The job that begins a run, or goes on with it.

    Raises:
      UserError: for an unknown recipe or setting, a folder that holds something else, or
        a mirror that is not installed.
    """
    _check(name, words, folder)
    if mirror:
        mirrors.check(mirror)
    return [
        _meta_train(
            folder, [references.absolute(name), *map(settings.absolute, words), *(["--log", mirror] if mirror else [])]
        )
    ]


def resume(folder: Path) -> list[Job]:
    """The job that goes on with a run. Raises UserError if there is none."""
    directory.read_recipe(folder)
    return [_meta_train(folder, [])]


def sweep_array(runs: list[sweep.Run], folder: Path, at_once: int | None) -> list[Job]:
    """The job array of a sweep.

    Args:
      runs: of ``sweep.plan``.
      folder: where its table is.
      at_once: how many run at the same time, where that is limited.

    Raises:
      UserError: for any run that ``train`` would refuse.
    """
    for each in runs:
        _check(each.recipe, list(each.settings), each.folder)
    log = _log(folder / "logs", "%A_%a")
    return [Job("sweep.sbatch", [str(folder / sweep.TABLE)], folder.name, log, _indices(len(runs), at_once))]


def evaluation(request: evaluate.Request, out: Path, at_once: int | None) -> list[Job]:
    """The job array that computes the shards of an evaluation, and the job that joins them.

    Raises:
      UserError: for an unknown checkpoint, suite, task or baseline.
    """
    words, indices = [*request.options(), "--out", str(out)], _indices(len(evaluate.shards(request)), at_once)
    return [
        Job("evaluate_array.sbatch", words, out.name, _log(out / "logs", "%A_%a"), indices),
        Job("merge.sbatch", [str(out)], out.name, _log(out / "logs", "merge_%j"), former=True),
    ]


def send(jobs: list[Job], options: list[str], dry_run: bool) -> None:
    """Prints the sbatch commands and, unless ``dry_run``, runs them.

    Args:
      jobs: in their order; one may wait for the one before it.
      options: of sbatch, from the user, for each job.
      dry_run: prints only.

    Raises:
      UserError: if there is no sbatch, or it refuses.
    """
    for option in options:
        if option.startswith(("-a", "--arr")):
            raise UserError(f"{option}: the indices follow from the work; limit how many run at once with --at-once")
    if not dry_run and shutil.which("sbatch") is None:
        raise UserError("sbatch is not on the PATH: submit from a login node of the cluster, or look with --dry-run")
    former = "JOB"
    for job in jobs:
        command = job.command(options, former)
        print(f"{PYTHON}={shlex.quote(sys.executable)} {shlex.join(command)}")
        if not dry_run:
            former = _run(command, job.log.parent)
            print(f"submitted job {former}")


def _check(name: str, words: list[str], folder: Path) -> None:
    """Refuses now what the trainer would refuse when its turn has come."""
    recipe = settings.override(recipes.find(name), words)
    program.build_learned(recipe)  # reads the checkpoint of start=
    if (folder / directory.CONFIG).exists():
        if directory.read_config(folder)["recipe"] != settings.to_json(recipe):
            remedy = f"choose another folder, or go on with it: metaopt submit train --resume {folder}"
            raise UserError(f"{folder} is a run of another recipe: {remedy}")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"run directory {folder} is not empty: choose another")


def _meta_train(folder: Path, words: list[str]) -> Job:
    # The log lies beside the run directory: that one must be new, or a run.
    return Job("meta_train.sbatch", [str(folder), *words], folder.name, _log(folder.parent, f"{folder.name}.%j"))


def _log(folder: Path, name: str) -> Path:
    return Path(str(folder).replace("%", "%%")) / f"{name}.log"


def _indices(count: int, at_once: int | None) -> str:
    if at_once is not None and at_once < 1:
        raise UserError(f"--at-once must be at least 1, got {at_once}")
    return f"0-{count - 1}" + (f"%{at_once}" if at_once else "")


def _run(command: list[str], logs: Path) -> str:
    try:
        logs.mkdir(parents=True, exist_ok=True)  # SLURM would not, and the job would fail without a word
    except OSError as error:
        raise UserError(f"cannot make {logs}: {error.strerror}") from error
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, PYTHON: sys.executable})
    if done.returncode:
        raise UserError(f"sbatch refused: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
    return done.stdout.strip().partition(";")[0]  # a cluster's name may follow
