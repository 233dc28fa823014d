"""The devices a run is spread over: those of this machine, or of every process of a SLURM step."""

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from metaopt.errors import UserError

SAMPLE_AXIS = "sample"  # the mesh axis that the samples of an estimator are spread over
# What srun sets in every task. Shells inside an allocation have some of it, only tasks have all.
STEP_VARIABLES = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
NVIDIA = Path("/proc/driver/nvidia/gpus")  # where the driver lists them
HEARTBEAT = 30  # seconds after which a process that is silent counts as lost; a run then goes on from its last save
FAREWELL = 120  # seconds that a process which is done waits for the others, e.g. for the first to close its log


def prepare(num_samples: int, num_devices: int | None = None, environ: Mapping[str, str] = os.environ) -> None:
    """Makes the devices; called before anything runs.

    In a SLURM step of several tasks, and only there, the processes join, and each prints which it
    is and what it has. Elsewhere the CPU is split into devices. Accelerators are as they are.

    Args:
      num_samples: that will be spread over the devices.
      num_devices: of the CPU; by default as many as there are cores and the samples divide over.
      environ: where SLURM says what it has given.

    Raises:
      UserError: if the first node has no address, or accelerators would stay idle.
    """
    if not in_step(environ):
        make_cpu_devices(num_samples, num_devices)
        refuse_idle_accelerators(environ, jax.default_backend())
        return
    if num_devices not in (None, 1):
        raise UserError(f"a process of a step has one CPU device: leave out --devices {num_devices}, add tasks")
    # It would catch SIGTERM and do nothing, until a run installs its own handlers.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        coordinator_address=coordinator(environ),
        num_processes=int(environ["SLURM_STEP_NUM_TASKS"]),
        process_id=int(environ["SLURM_PROCID"]),
        local_device_ids=local_accelerators(environ),
        heartbeat_timeout_seconds=HEARTBEAT,
        shutdown_timeout_seconds=FAREWELL,
    )
    # With more, gloo's collectives wait for each other for ever.
    jax.config.update("jax_num_cpu_devices", 1)
    refuse_idle_accelerators(environ, jax.default_backend())
    local, everywhere = jax.local_devices(), jax.devices()
    print(
        f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}: "
        f"{len(local)} of {len(everywhere)} devices ({local[0].device_kind})",
        flush=True,
    )


def in_step(environ: Mapping[str, str]) -> bool:
    """Whether this is one of several tasks of a SLURM step, and not a shell or a script in its allocation."""
    return all(name in environ for name in STEP_VARIABLES) and int(environ["SLURM_STEP_NUM_TASKS"]) > 1


def coordinator(environ: Mapping[str, str]) -> str:
    """``host:port`` where the processes of a step meet: the first node, and a port of this life of this step.

    Two steps of a job, or what is left of it on a lost node, must not meet.
    """
    if given := environ.get("JAX_COORDINATOR_ADDRESS"):
        return given
    host = first_node(environ["SLURM_STEP_NODELIST"])
    job, step, life = (int(environ.get(f"SLURM_{name}", 0)) for name in ("JOB_ID", "STEP_ID", "RESTART_COUNT"))
    port = 20000 + (1009 * job + 101 * step + life) % 12000  # below the ports that connections are given
    try:
        socket.getaddrinfo(host, port)
    except socket.gaierror as error:
        raise UserError(
            f"the first node of this step, {host!r}, has no address that this node can find: set "
            f"JAX_COORDINATOR_ADDRESS=HOST:{port}, with an address of that node, before srun"
        ) from error
    return f"{host}:{port}"


def first_node(nodes: str) -> str:
    """The first of a list as SLURM writes it: ``gpu[007-009,12],login`` is gpu007."""
    found = re.match(r"([^,\[]+)(?:\[([^\],-]+))?", nodes)
    if found is None:
        raise UserError(f"SLURM_STEP_NODELIST={nodes!r} names no node")
    return found[1] + (found[2] or "")


def local_accelerators(environ: Mapping[str, str]) -> list[int] | None:
    """The accelerators of this process where the tasks of its node share them; None where there are none.

    JAX alone would give every process one, and leave the others idle where there is
    one process a node.
    """
    visible, here = _visible(environ), _tasks_on_this_node(environ)
    if not visible:
        return None
    on_node = int(environ.get("SLURM_GPUS_ON_NODE", visible))
    if visible < on_node:
        raise UserError(
            f"this process sees {visible} of the {on_node} GPUs of its node: ask for --gpus-per-node in place of "
            "--gpus-per-task, every process has to see them all"
        )
    if visible % here:
        raise UserError(f"{here} processes cannot share {visible} GPUs evenly: set --ntasks-per-node to a divisor")
    each, place = visible // here, int(environ["SLURM_LOCALID"])
    return list(range(place * each, (place + 1) * each))


def refuse_idle_accelerators(environ: Mapping[str, str], backend: str) -> None:
    """Raises UserError where there are GPUs, and ``backend``, what JAX chose, is not asked for by name."""
    present = _visible(environ) if "CUDA_VISIBLE_DEVICES" in environ else len(list(NVIDIA.glob("*")))
    if present and backend == "cpu" and "cpu" not in environ.get("JAX_PLATFORMS", ""):
        raise UserError(
            f"{present} GPUs would stay idle, JAX has no GPU backend here: pip install 'metaopt[cuda12]', or set "
            "JAX_PLATFORMS=cpu to run on the CPU all the same"
        )


def make_cpu_devices(num_samples: int, num_devices: int | None = None) -> None:
    """Splits the CPU into devices, by default as many as there are cores and the samples divide over."""
    if num_devices is None:
        num_devices = max(n for n in range(1, _cores() + 1) if num_samples % n == 0)
    jax.config.update("jax_num_cpu_devices", num_devices)


def mesh(num_devices: int | None = None) -> Mesh:
    """A one-dimensional mesh over the first ``num_devices`` devices of all processes, all by default."""
    return Mesh(np.array(jax.devices()[:num_devices]), (SAMPLE_AXIS,), axis_types=(AxisType.Auto,))


def _cores() -> int:
    """That this process may use: SLURM gives a job some of those the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _visible(environ: Mapping[str, str]) -> int:
    return len([name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()])


def _tasks_on_this_node(environ: Mapping[str, str]) -> int:
    """From e.g. ``SLURM_STEP_TASKS_PER_NODE=4(x2),1`` and the place of this node."""
    counts: list[int] = []
    for part in environ.get("SLURM_STEP_TASKS_PER_NODE", environ["SLURM_STEP_NUM_TASKS"]).split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts[int(environ.get("SLURM_NODEID", 0))]
