"""``metaopt submit``: checks the request, then submits it to SLURM with a script of ``slurm/``."""

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

PYTHON = "METAOPT_PYTHON"  # environment variable that names the Python with metaopt to the scripts


class Job(NamedTuple):
    """A script of ``slurm/`` with its arguments."""

    script: str
    arguments: list[str]
    name: str
    log: Path  # path of the log, in which sbatch replaces %j and other patterns
    array: str = ""  # indices of a job array, e.g. 0-11%4
    after_previous: bool = False  # whether it starts when the previous job has ended, successfully or not

    def command(self, options: list[str], previous_job: str) -> list[str]:
        """The sbatch command.

        Args:
          options: sbatch options of the user, which override the others.
          previous_job: id of the job that was submitted before.
        """
        words = ["sbatch", "--parsable", f"--job-name={self.name}", f"--output={self.log}"]
        words += [f"--array={self.array}"] if self.array else []
        words += [f"--dependency=afterany:{previous_job}"] if self.after_previous else []
        return [*words, *options, str(scripts() / self.script), *self.arguments]


def scripts() -> Path:
    """The folder of the batch scripts, in an installed package or in the source tree."""
    package = Path(__file__).parents[1]
    installed = package / "slurm"
    return installed if installed.is_dir() else package.parent / "slurm"


def train(name: str, words: list[str], folder: Path, mirror: str | None = None) -> list[Job]:
    """The job that starts a run, or resumes it if it exists.

    Args:
      name: name of a recipe, or reference to one.
      words: changes to the recipe, ``name=value``.
      folder: run directory.
      mirror: name of a mirror for the metrics, e.g. "wandb".

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
    """The job that resumes the run in ``folder``. Raises UserError if there is none."""
    directory.read_recipe(folder)
    return [_meta_train(folder, [])]


def sweep_array(runs: list[sweep.Run], folder: Path, at_once: int | None) -> list[Job]:
    """The job array of a sweep.

    Args:
      runs: result of ``sweep.plan``.
      folder: folder of the sweep, which holds its table.
      at_once: largest number of jobs at the same time; None is no limit.

    Raises:
      UserError: for any run that ``train`` would refuse.
    """
    for each in runs:
        _check(each.recipe, list(each.settings), each.folder)
    log = _log(folder / "logs", "%A_%a")
    return [Job("sweep.sbatch", [str(folder / sweep.TABLE)], folder.name, log, _indices(len(runs), at_once))]


def evaluation(request: evaluate.Request, out: Path, at_once: int | None) -> list[Job]:
    """The job array that computes the shards of an evaluation, and the job that merges them.

    Args:
      request: evaluation that is asked for.
      out: folder of the evaluation.
      at_once: largest number of jobs at the same time; None is no limit.

    Raises:
      UserError: for an unknown checkpoint, suite, task or baseline.
    """
    words, indices = [*request.options(), "--out", str(out)], _indices(len(evaluate.shards(request)), at_once)
    return [
        Job("evaluate_array.sbatch", words, out.name, _log(out / "logs", "%A_%a"), indices),
        Job("merge.sbatch", [str(out)], out.name, _log(out / "logs", "merge_%j"), after_previous=True),
    ]


def send(jobs: list[Job], options: list[str], dry_run: bool) -> None:
    """Prints the sbatch commands and, unless ``dry_run``, runs them.

    Args:
      jobs: jobs in the order in which they are submitted.
      options: sbatch options of the user, for all jobs.
      dry_run: only print the commands.

    Raises:
      UserError: if sbatch is not installed, or rejects a job.
    """
    for option in options:
        if option.startswith(("-a", "--arr")):
            raise UserError(f"{option}: metaopt sets the array indices; limit how many run at once with --at-once")
    if not dry_run and shutil.which("sbatch") is None:
        raise UserError("sbatch is not on the PATH: submit from a login node of the cluster, or look with --dry-run")
    job_id = "JOB"
    for job in jobs:
        command = job.command(options, job_id)
        print(f"{PYTHON}={shlex.quote(sys.executable)} {shlex.join(command)}")
        if not dry_run:
            job_id = _run(command, job.log.parent)
            print(f"submitted job {job_id}")


def _check(name: str, words: list[str], folder: Path) -> None:
    """Raises the UserErrors that the trainer would raise when the job starts."""
    recipe = settings.override(recipes.find(name), words)
    program.build_learned(recipe)  # reads the checkpoint in start=
    if (folder / directory.CONFIG).exists():
        if directory.read_config(folder)["recipe"] != settings.to_json(recipe):
            remedy = f"choose another folder, or resume that run: metaopt submit train --resume {folder}"
            raise UserError(f"{folder} is a run of another recipe: {remedy}")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"run directory {folder} is not empty: choose another")


def _meta_train(folder: Path, words: list[str]) -> Job:
    # The log is next to the run directory, not in it, because a new run directory has to be empty.
    return Job("meta_train.sbatch", [str(folder), *words], folder.name, _log(folder.parent, f"{folder.name}.%j"))


def _log(folder: Path, name: str) -> Path:
    return Path(str(folder).replace("%", "%%")) / f"{name}.log"


def _indices(count: int, at_once: int | None) -> str:
    if at_once is not None and at_once < 1:
        raise UserError(f"--at-once must be at least 1, got {at_once}")
    return f"0-{count - 1}" + (f"%{at_once}" if at_once else "")


def _run(command: list[str], logs: Path) -> str:
    try:
        logs.mkdir(parents=True, exist_ok=True)  # SLURM does not create it, and the job would fail without a message
    except OSError as error:
        raise UserError(f"cannot make {logs}: {error.strerror}") from error
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, PYTHON: sys.executable})
    if done.returncode:
        raise UserError(f"sbatch refused: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
    return done.stdout.strip().partition(";")[0]  # the name of the cluster may follow
