"""Runs of several processes, started as the tasks of a SLURM step are, on one machine.

What needs SLURM itself is in tests/slurm.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from meta_train import training
from meta_train.run import preempt

RECIPE = [
    "quadratics",
    "outer_steps=60",
    "warmup=2",
    "num_samples=4",
    "shortest=20",
    "longest=40",
    "steps_per_dispatch=5",
    "save_every=20",
]
JOBS = itertools.count(os.getpid())  # the port comes from the number of the job
TIMEOUT = 200  # seconds


def step_environment(num_tasks: int, task: int, job: int) -> dict[str, str]:
    names = {"JOB_ID": job, "STEP_ID": 0, "STEP_NODELIST": "127.0.0.1", "STEP_NUM_TASKS": num_tasks}
    names |= {"STEP_TASKS_PER_NODE": num_tasks, "PROCID": task, "LOCALID": task, "NODEID": 0}
    return {f"SLURM_{name}": str(value) for name, value in names.items()}


def launch(num_tasks: int, *arguments, **environ) -> list[subprocess.Popen]:
    command = [sys.executable, "-m", "meta_train.cli", "train", *map(str, arguments)]
    job = next(JOBS)
    places = [step_environment(num_tasks, i, job) if num_tasks > 1 else {} for i in range(num_tasks)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [subprocess.Popen(command, env=os.environ | place | environ, **pipes) for place in places]


def finish(processes: list[subprocess.Popen]) -> tuple[list[int], list[str]]:
    """Exit codes and outputs."""
    try:
        outputs = [process.communicate(timeout=TIMEOUT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


def wait_for(path) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def rows(folder) -> list[dict]:
    return [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]


def without_time(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in ("time", "seconds")} for row in rows]


def assert_same(folder, other, **tolerance):
    (ours, step), (theirs, last) = training.read_theta(folder), training.read_theta(other)
    assert step == last
    equal = np.testing.assert_allclose if tolerance else np.testing.assert_array_equal
    jax.tree.map(lambda a, b: equal(a, b, **tolerance), ours, theirs)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run by two processes, by one with two devices, by one with one device."""
    folder = tmp_path_factory.mktemp("runs")
    ways = {"processes": (2, []), "devices": (1, ["--devices", "2"]), "device": (1, ["--devices", "1"])}
    for name, (num, options) in ways.items():
        codes, outputs = finish(launch(num, *RECIPE, "--dir", folder / name, *options))
        assert codes == [0] * num, outputs
        (folder / f"{name}.txt").write_text("".join(outputs))
    return folder


def test_two_processes_equal_two_devices_and_one(runs):
    assert_same(runs / "processes", runs / "devices")
    assert without_time(rows(runs / "processes")) == without_time(rows(runs / "devices"))
    assert_same(runs / "processes", runs / "device", rtol=1e-5)  # a sum in another order


def test_every_process_says_what_it_is_and_one_reports(runs):
    said = (runs / "processes.txt").read_text()
    assert "process 0 of 2" in said and "process 1 of 2" in said and said.count("1 of 2 devices (cpu)") == 2
    assert said.count("outer step 60 of 60") == 1
    assert "process" not in (runs / "devices.txt").read_text()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of two processes, the second of which got a signal."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    processes = launch(2, *RECIPE, "outer_steps=5000", "--dir", folder)
    wait_for(folder / "state" / "20")
    processes[1].send_signal(signal.SIGUSR1)
    codes, outputs = finish(processes)
    assert codes == [preempt.EXIT_CODE] * 2, outputs
    return folder


def test_a_signal_to_one_process_stops_all_at_the_same_step(stopped):
    assert (stopped / preempt.MARKER).exists()
    saved = max(int(path.name) for path in (stopped / "state").iterdir())
    assert rows(stopped)[-1]["step"] == saved < 5000
    assert training.read_theta(stopped)[1] == saved


@pytest.mark.parametrize(
    "saved_by, read_by", [("processes", "processes"), ("processes", "device"), ("device", "processes")]
)
def test_a_run_goes_on_from_the_newest_whole_state_on_any_number_of_processes(runs, tmp_path, saved_by, read_by):
    shutil.copytree(runs / saved_by, folder := tmp_path / "run")
    (folder / "state" / "60" / "SHA256SUMS").unlink()
    (folder / preempt.MARKER).touch()
    options = ["--devices", "1"] if read_by == "device" else []
    codes, outputs = finish(launch(2 if read_by == "processes" else 1, "--resume", folder, *options))
    assert set(codes) == {0}, outputs
    assert sum(output.count("skipped outer step 60") for output in outputs) == 1
    assert sum(output.count("at outer step 40") for output in outputs) == 1
    # With the same devices bit for bit; with others a sum has another order.
    assert_same(folder, runs / saved_by, **({} if saved_by == read_by else {"rtol": 1e-5}))
    assert [row["step"] for row in rows(folder)] == list(range(1, 61))
    assert not (folder / preempt.MARKER).exists()


def test_a_mistake_ends_every_process(runs):
    codes, outputs = finish(launch(2, *RECIPE, "--dir", runs / "device"))
    assert codes == [2, 2] and all("not empty: continue it with --resume" in output for output in outputs)


def test_a_process_that_dies_takes_the_others_with_it(tmp_path):
    processes = launch(2, *RECIPE, "outer_steps=100000", "--dir", tmp_path / "run")
    wait_for(tmp_path / "run" / "state" / "20")
    processes[1].kill()
    began = time.monotonic()
    codes, _ = finish(processes)
    assert codes[1] == -signal.SIGKILL and codes[0] not in (0, 2, preempt.EXIT_CODE)
    assert time.monotonic() - began < 60
    assert not (tmp_path / "run" / preempt.MARKER).exists()


def test_the_process_that_came_last_has_the_run(tmp_path):
    first = launch(1, *RECIPE, "outer_steps=100000", "--dir", tmp_path / "run", "--devices", "1")
    wait_for(tmp_path / "run" / "state" / "20")
    second = launch(1, "--resume", tmp_path / "run", "--devices", "1")
    codes, outputs = finish(first)
    assert codes == [2] and "another process has taken" in outputs[0]
    second[0].send_signal(signal.SIGTERM)
    codes, outputs = finish(second)
    assert codes == [preempt.EXIT_CODE], outputs
    logged = [row["step"] for row in rows(tmp_path / "run")]
    assert logged == list(range(1, len(logged) + 1))


def test_a_run_stops_in_time_for_the_limit_of_its_job(tmp_path):
    now = time.time()
    times = {"SLURM_JOB_START_TIME": str(int(now)), "SLURM_JOB_END_TIME": str(int(now + 40))}
    codes, outputs = finish(
        launch(1, *RECIPE, "outer_steps=1000000", "--dir", tmp_path / "run", "--devices", "1", **times)
    )
    assert codes == [preempt.EXIT_CODE], outputs
    assert time.time() < now + 40 and (tmp_path / "run" / preempt.MARKER).exists()


def test_saving_more_seldom_than_the_job_is_long_is_refused(tmp_path):
    now = time.time()
    times = {"SLURM_JOB_START_TIME": str(now), "SLURM_JOB_END_TIME": str(now + 60)}
    seldom = ["outer_steps=100000000", "save_every=100000000"]
    codes, outputs = finish(launch(1, *RECIPE, *seldom, "--dir", tmp_path / "run", **times))
    assert (
        codes == [2]
        and "lower save_every in" in outputs[0]
        and "the time limit of the job (60 s)" in outputs[0].replace("\n", " ")
    )
    assert training.read_theta(tmp_path / "run")[1] == 5  # what was done is saved
