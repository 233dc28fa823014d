"""The devices that samples are sharded over: those of this machine, or of all processes of a SLURM step."""

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from metaopt.errors import UserError

THREADS = 8  # of the CPU's backend, see ``widen_thread_pool``
SAMPLE_AXIS = "sample"  # mesh axis that the samples of an estimator are sharded over
# Variables that srun sets in every task. A shell inside an allocation has some of them, only tasks have all.
STEP_VARIABLES = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
NVIDIA = Path("/proc/driver/nvidia/gpus")  # folder in which the NVIDIA driver lists the GPUs
HEARTBEAT_TIMEOUT = 30  # seconds without a heartbeat after which a process counts as lost
SHUTDOWN_TIMEOUT = 120  # seconds that a finished process waits for the others, e.g. for the first to close its log


def prepare(num_samples: int, num_devices: int | None = None, environ: Mapping[str, str] = os.environ) -> None:
    """Sets up the devices; has to be called before JAX is used.

    In a SLURM step of several tasks the processes connect, and each prints its index and its
    devices. Elsewhere the CPU is divided into several devices. Accelerators are used as they are.

    Args:
      num_samples: number of samples that will be sharded over the devices.
      num_devices: number of CPU devices; by default the largest number, up to the number of
        cores, that divides ``num_samples``.
      environ: environment variables, in which SLURM describes the step.

    Raises:
      UserError: if the first node has no address, or accelerators would stay idle.
    """
    widen_thread_pool()
    if not in_step(environ):
        make_cpu_devices(num_samples, num_devices)
        refuse_idle_accelerators(environ, jax.default_backend())
        return
    if num_devices not in (None, 1):
        raise UserError(f"a process of a step has one CPU device: leave out --devices {num_devices}, add tasks")
    # JAX's own handler of SIGTERM would ignore the signal until a run installs its handlers.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        coordinator_address=coordinator(environ),
        num_processes=int(environ["SLURM_STEP_NUM_TASKS"]),
        process_id=int(environ["SLURM_PROCID"]),
        local_device_ids=local_accelerators(environ),
        heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
        shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
    )
    # With more CPU devices in a process, the collectives of Gloo deadlock.
    jax.config.update("jax_num_cpu_devices", 1)
    refuse_idle_accelerators(environ, jax.default_backend())
    local, everywhere = jax.local_devices(), jax.devices()
    print(
        f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}: "
        f"{len(local)} of {len(everywhere)} devices ({local[0].device_kind})",
        flush=True,
    )


def in_step(environ: Mapping[str, str]) -> bool:
    """Whether this process is one of several tasks of a SLURM step, not a shell or a script in an allocation."""
    return all(name in environ for name in STEP_VARIABLES) and int(environ["SLURM_STEP_NUM_TASKS"]) > 1


def coordinator(environ: Mapping[str, str]) -> str:
    """``host:port`` at which the processes of a step connect: the first node, and a port of its own.

    The port depends on job, step and restart count, so that processes of another step, or of an
    earlier attempt that are still alive on a lost node, cannot connect.
    """
    if given := environ.get("JAX_COORDINATOR_ADDRESS"):
        return given
    host = first_node(environ["SLURM_STEP_NODELIST"])
    job, step, restart = (int(environ.get(f"SLURM_{name}", 0)) for name in ("JOB_ID", "STEP_ID", "RESTART_COUNT"))
    port = 20000 + (1009 * job + 101 * step + restart) % 12000  # below the ephemeral ports
    try:
        socket.getaddrinfo(host, port)
    except socket.gaierror as error:
        raise UserError(
            f"the first node of this step, {host!r}, has no address that this node can find: set "
            f"JAX_COORDINATOR_ADDRESS=HOST:{port}, with an address of that node, before srun"
        ) from error
    return f"{host}:{port}"


def first_node(nodes: str) -> str:
    """The first node of a list in the notation of SLURM, e.g. gpu007 of ``gpu[007-009,12],login``."""
    found = re.match(r"([^,\[]+)(?:\[([^\],-]+))?", nodes)
    if found is None:
        raise UserError(f"SLURM_STEP_NODELIST={nodes!r} names no node")
    return found[1] + (found[2] or "")


def local_accelerators(environ: Mapping[str, str]) -> list[int] | None:
    """The accelerators of this process, if the tasks of a node share them; None if there are none.

    By default JAX would use one accelerator in each process, and leave the others idle if there is
    only one process on a node.

    Raises:
      UserError: if this process does not see all GPUs of its node, or the processes of the node
        cannot share them evenly.
    """
    visible, num_tasks = _num_visible(environ), _tasks_on_this_node(environ)
    if not visible:
        return None
    on_node = int(environ.get("SLURM_GPUS_ON_NODE", visible))
    if visible < on_node:
        raise UserError(
            f"this process sees {visible} of the {on_node} GPUs of its node: ask for --gpus-per-node in place of "
            "--gpus-per-task, every process has to see them all"
        )
    if visible % num_tasks:
        raise UserError(f"{num_tasks} processes cannot share {visible} GPUs evenly: set --ntasks-per-node to a divisor")
    per_task, index = visible // num_tasks, int(environ["SLURM_LOCALID"])
    return list(range(index * per_task, (index + 1) * per_task))


def refuse_idle_accelerators(environ: Mapping[str, str], backend: str) -> None:
    """Raises UserError if there are GPUs, but JAX runs on the CPU without being asked to.

    Args:
      environ: environment variables.
      backend: backend that JAX has chosen.
    """
    present = _num_visible(environ) if "CUDA_VISIBLE_DEVICES" in environ else len(list(NVIDIA.glob("*")))
    if present and backend == "cpu" and "cpu" not in environ.get("JAX_PLATFORMS", ""):
        raise UserError(
            f"{present} GPUs would stay idle, JAX has no GPU backend here: pip install 'metaopt[cuda12]', or set "
            "JAX_PLATFORMS=cpu to run on the CPU"
        )


def make_cpu_devices(num_samples: int, num_devices: int | None = None) -> None:
    """Divides the CPU into devices.

    Args:
      num_samples: number of samples that will be sharded over the devices.
      num_devices: number of devices; by default the largest number, up to the number of cores,
        that divides ``num_samples``.

    Raises:
      UserError: if the samples cannot be sharded evenly over ``num_devices``.
    """
    if num_devices is not None and num_devices < 1:
        raise UserError(f"--devices must be at least 1, got {num_devices}")
    if num_devices is not None and num_samples % num_devices:
        raise UserError(
            f"the samples (num_samples, of a strategy population) must be a multiple of the {num_devices} devices, got "
            f"{num_samples}"
        )
    if num_devices is None:
        num_devices = max(n for n in range(1, _num_cores() + 1) if num_samples % n == 0)
    jax.config.update("jax_num_cpu_devices", num_devices)


def widen_thread_pool() -> None:
    """Gives the CPU's backend, which is not yet started, THREADS threads at least.

    With as few as there are cores, loops within loops that are large enough to have work side by side can
    wait for each other for ever: seen with jaxlib 0.10.2, two threads, and eight agents that play Catch.
    """
    os.environ.setdefault("NPROC", str(max(THREADS, _num_cores())))


def mesh(num_devices: int | None = None) -> Mesh:
    """A one-dimensional mesh of the first ``num_devices`` devices of all processes, by default of all devices."""
    return Mesh(np.array(jax.devices()[:num_devices]), (SAMPLE_AXIS,), axis_types=(AxisType.Auto,))


def _num_cores() -> int:
    """The number of cores that this process may use, which in a SLURM job may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _num_visible(environ: Mapping[str, str]) -> int:
    """The number of GPUs in CUDA_VISIBLE_DEVICES."""
    return len([name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()])


def _tasks_on_this_node(environ: Mapping[str, str]) -> int:
    """The number of tasks on this node, e.g. 1 on the third of ``SLURM_STEP_TASKS_PER_NODE=4(x2),1``."""
    counts: list[int] = []
    for entry in environ.get("SLURM_STEP_TASKS_PER_NODE", environ["SLURM_STEP_NUM_TASKS"]).split(","):
        count, _, times = entry.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts[int(environ.get("SLURM_NODEID", 0))]
