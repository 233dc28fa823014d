"""What SLURM says, and what a process makes of it."""

import os
from datetime import datetime

import pytest

from meta_train.parallel import devices, processes
from meta_train.run import preempt
from metaopt.errors import UserError

STEP = {
    "SLURM_JOB_ID": "42",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "127.0.0.[1-2]",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


@pytest.mark.parametrize(
    "nodes, first",
    [
        ("gpu007", "gpu007"),
        ("gpu007,login", "gpu007"),
        ("gpu[007-009,12],login", "gpu007"),
        ("gpu[3,5]", "gpu3"),
        ("127.0.0.[1-2]", "127.0.0.1"),
    ],
)
def test_the_first_of_a_list_of_nodes(nodes, first):
    assert devices.first_node(nodes) == first


@pytest.mark.parametrize("missing", ["SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS"])
def test_a_shell_inside_an_allocation_is_no_step(missing):
    assert devices.in_step(STEP)
    assert not devices.in_step({name: value for name, value in STEP.items() if name != missing})
    assert not devices.in_step(STEP | {"SLURM_STEP_NUM_TASKS": "1"})


def test_steps_and_lives_of_a_job_do_not_meet():
    lives = [STEP, STEP | {"SLURM_STEP_ID": "1"}, STEP | {"SLURM_RESTART_COUNT": "1"}, STEP | {"SLURM_JOB_ID": "43"}]
    addresses = [devices.coordinator(environ) for environ in lives]
    assert len(set(addresses)) == len(addresses) and all(a.startswith("127.0.0.1:") for a in addresses)
    assert all(20000 <= int(a.split(":")[1]) < 32000 for a in addresses)
    assert devices.coordinator(STEP | {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:99"}) == "10.0.0.1:99"


def test_a_node_without_an_address_is_named():
    with pytest.raises(UserError, match=r"first node of this step, 'no-such-node', has no address .* set JAX_COORD"):
        devices.coordinator(STEP | {"SLURM_STEP_NODELIST": "no-such-node,b"})


@pytest.mark.parametrize(
    "visible, tasks, place, mine",
    [
        ("0,1,2,3", "4(x2)", "1", [1]),  # one process a GPU
        ("0,1,2,3", "1(x2)", "0", [0, 1, 2, 3]),  # one a node, where JAX alone would take one
        ("0,1,2,3", "4,2", "1", [2, 3]),
        ("", "4(x2)", "1", None),
    ],
)
def test_the_tasks_of_a_node_share_its_gpus(visible, tasks, place, mine):
    environ = STEP | {"CUDA_VISIBLE_DEVICES": visible, "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_LOCALID": place}
    assert devices.local_accelerators(environ) == mine


@pytest.mark.parametrize(
    "environ, message",
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1,2"}, "4 processes cannot share 3 GPUs evenly: set --ntasks-per-node"),
        ({"CUDA_VISIBLE_DEVICES": "0", "SLURM_GPUS_ON_NODE": "4"}, "sees 1 of the 4 GPUs .* --gpus-per-node"),
    ],
)
def test_gpus_that_would_stay_idle_in_a_step_are_refused(environ, message):
    with pytest.raises(UserError, match=message):
        devices.local_accelerators(STEP | environ)


def test_gpus_that_jax_cannot_use_are_refused_unless_the_cpu_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "NVIDIA", tmp_path)
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / name).touch()
    for environ, count in (({}, 2), ({"CUDA_VISIBLE_DEVICES": "3"}, 1)):
        with pytest.raises(UserError, match=f"{count} GPUs would stay idle.*metaopt.cuda12.*JAX_PLATFORMS=cpu"):
            devices.refuse_idle_accelerators(environ, "cpu")
        devices.refuse_idle_accelerators(environ, "gpu")
        devices.refuse_idle_accelerators(environ | {"JAX_PLATFORMS": "cpu"}, "cpu")
    devices.refuse_idle_accelerators({"CUDA_VISIBLE_DEVICES": ""}, "cpu")  # hidden on purpose


def test_a_process_of_a_step_has_one_cpu_device():
    with pytest.raises(UserError, match="one CPU device: leave out --devices 2, add tasks"):
        devices.prepare(8, 2, STEP)


def test_the_times_of_a_job(monkeypatch, tmp_path):
    assert preempt.job_times({}) is None
    both = {"SLURM_JOB_ID": "7", "SLURM_JOB_START_TIME": "100", "SLURM_JOB_END_TIME": "160"}
    assert preempt.job_times(both) == (100.0, 160.0)
    squeue = tmp_path / "squeue"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    began = datetime(2026, 11, 22, 17, 0)  # squeue prints local time
    answers = {
        "2026-11-22T17:00:00 2026-11-22T17:01:00": (began.timestamp(), began.timestamp() + 60),
        "2026-11-22T17:00:00 NONE": None,
    }
    for answer, times in answers.items():
        squeue.write_text(f'#!/bin/sh\n[ "$3" = 7 ] && echo "{answer}"\n')
        squeue.chmod(0o755)
        assert preempt.job_times({"SLURM_JOB_ID": "7"}) == times
        # The last element of an array has the number of the array.
        element = {"SLURM_JOB_ID": "6", "SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "2"}
        squeue.write_text(squeue.read_text().replace("= 7", "= 6_2"))
        assert preempt.job_times(element) == times


def test_a_single_process_talks_to_itself():
    assert processes.largest(3) == 3 and processes.on_first(lambda: "heard") == "heard" and processes.is_first()


def test_the_thread_pool_is_wider_than_two_cores_and_never_what_a_user_did_not_ask_for(monkeypatch):
    monkeypatch.setenv("NPROC", "3")
    devices.widen_thread_pool()
    assert os.environ["NPROC"] == "3"
    monkeypatch.delenv("NPROC")
    monkeypatch.setattr(devices, "_num_cores", lambda: 2)
    devices.widen_thread_pool()
    assert os.environ["NPROC"] == "8"
    monkeypatch.delenv("NPROC")
    monkeypatch.setattr(devices, "_num_cores", lambda: 64)
    devices.widen_thread_pool()
    assert os.environ["NPROC"] == "64"
    monkeypatch.delenv("NPROC")
