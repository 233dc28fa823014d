"""Outer steps per second on 1 and 2 devices of 1 and 2 processes, and what a model of them says of 8, 64 and 512.

The recipe is digits-quick; a device is one core, and a process of two shares nothing with
the other. An outer step on n devices with s samples each takes

    t = (a + b s) + sum over its all-reduces of (2 (n - 1) latency + 2 (n - 1) / n bytes / bandwidth) + agreement / M

a + b s is fitted on one device; latency and bandwidth, of a ring, to all-reduces alone between
two processes; an agreement of all processes comes once in M outer steps. So the figures for two
devices are predictions too, and stand beside what was measured.
"""

import json
import os
import subprocess
import sys

import numpy as np

STEPS_PER_DISPATCH = 10  # M, of digits-quick
POINTS = [  # processes, devices of each, samples of each device
    (1, 1, 4),
    (1, 1, 8),
    (1, 1, 16),
    (1, 2, 4),
    (1, 2, 16),
    (2, 1, 4),
    (2, 1, 16),
]
NETWORKS = {  # seconds from one process to the next, bytes per second; the last two are assumed, not measured
    "25 Gbit/s Ethernet, 30 us (assumed)": (30e-6, 25e9 / 8),
    "200 Gbit/s InfiniBand, 3 us (assumed)": (3e-6, 200e9 / 8),
}
MANY = (1, 2, 8, 64, 512)


def main() -> None:
    rows = [measure(*point) for point in POINTS]
    for row in rows:
        print(json.dumps({"bench": "scale", **row}), flush=True)
    alone = [row for row in rows if row["devices"] == 1]
    compute = fit_compute(alone)
    reduces = next(row["all_reduces"] for row in rows if row["devices"] == 2)
    network = fit_network(next(row for row in rows if row["processes"] == 2)["all_reduce_s"])
    agree = next(row["agree_s"] for row in rows if row["processes"] == 2)
    within = fit_network(next(row for row in rows if row["processes"] == 1 and row["devices"] == 2)["all_reduce_s"])
    print(f"\ncompute: {1e3 * compute[0]:.2f} ms + {1e3 * compute[1]:.2f} ms a sample")
    print(f"all-reduces of an outer step: {reduces} bytes; an agreement of two processes {1e3 * agree:.2f} ms")
    print(f"between processes here: {1e6 * network[0]:.0f} us, {network[1] / 1e9:.2f} GB/s\n")
    print("processes devices samples/device  measured  predicted  outer steps/s")
    for row in rows:
        many = row["processes"] > 1
        t = predict(
            row["devices"], row["samples_per_device"], compute, reduces, network if many else within, agree * many
        )
        seen = row["outer_step_s"]
        print(
            f"{row['processes']:9} {row['devices']:7} {row['samples_per_device']:14} {1 / seen:9.2f} {1 / t:10.2f}"
            f"  ({100 * (seen / t - 1):+.0f} % of the time)"
        )
    for name, link in {"this machine's loopback (measured)": network, **NETWORKS}.items():
        print(f"\n{name}: outer steps/s, and share of what as many devices could do that never wait")
        print("devices   16 samples each   512 samples in all")
        for n in MANY:
            each = [predict(n, s, compute, reduces, link, agree * (n > 1)) for s in (16, 512 / n)]
            free = [predict(1, s, compute, [], link, 0.0) for s in (16, 512 / n)]
            cells = [f"{1 / t:8.2f} {100 * f / t:5.1f} %" for t, f in zip(each, free, strict=True)]
            print(f"{n:7}   {cells[0]}   {cells[1]}")


def measure(num_processes: int, devices_per_process: int, samples: int) -> dict:
    """What the first process of a worker prints."""
    command = [sys.executable, "-m", "tests.bench.scale_worker", str(samples), str(devices_per_process)]
    step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "127.0.0.1"}
    step |= {"SLURM_STEP_NUM_TASKS": str(num_processes), "SLURM_STEP_TASKS_PER_NODE": str(num_processes)}
    places = [
        step | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} if num_processes > 1 else {}
        for i in range(num_processes)
    ]
    workers = [subprocess.Popen(command, env=os.environ | place, stdout=subprocess.PIPE, text=True) for place in places]
    outputs = [worker.communicate(timeout=600)[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        sys.exit(f"a worker of {num_processes} failed")
    return json.loads(outputs[0].splitlines()[-1])


def fit_compute(rows: list[dict]) -> tuple[float, float]:
    """(a, b) of ``a + b samples``, in seconds, by least squares."""
    slope, start = np.polyfit([row["samples_per_device"] for row in rows], [row["outer_step_s"] for row in rows], 1)
    return float(start), float(slope)


def fit_network(seconds: dict[str, float]) -> tuple[float, float]:
    """(latency, bandwidth) of two on a ring, ``2 latency + bytes / bandwidth``, through smallest and largest."""
    sizes = sorted(map(int, seconds))
    small, large = seconds[str(sizes[0])], seconds[str(sizes[-1])]
    bandwidth = (sizes[-1] - sizes[0]) / (large - small)
    return (small - sizes[0] / bandwidth) / 2, bandwidth


def predict(n: int, samples: float, compute, all_reduces, network, agree: float) -> float:
    """Seconds of an outer step on ``n`` devices, see the top of the file."""
    latency, bandwidth = network
    one = lambda size: 2 * (n - 1) * latency + 2 * (n - 1) / n * size / bandwidth
    return compute[0] + compute[1] * samples + sum(map(one, all_reduces)) + agree / STEPS_PER_DISPATCH


if __name__ == "__main__":
    main()
