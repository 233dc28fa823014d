#!/usr/bin/env python3
"""A trainer without training: what the batch scripts may expect of ``python -m meta_train.cli train``.

Begins with ``RECIPE [name=value ...] --dir RUN``, goes on with ``--resume RUN``. Process 0 writes a state each
``save_every`` outer steps. SIGTERM and SIGUSR1 make it save, write RUN/REQUEUE and exit with 85.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

stop = []
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda *_: stop.append(True))

parser = argparse.ArgumentParser()
parser.add_argument("-P", action="store_true")
parser.add_argument("-m", required=True)
parser.add_argument("command", choices=["train"])
parser.add_argument("recipe", nargs="?")
parser.add_argument("settings", nargs="*")
parser.add_argument("--dir", type=Path)
parser.add_argument("--resume", type=Path)
arguments = parser.parse_args()

first = os.environ["SLURM_PROCID"] == "0"
run = arguments.resume or arguments.dir
if arguments.resume:
    recipe = json.loads((run / "config.json").read_text())
else:
    recipe = {"outer_steps": 100, "save_every": 10, "seed": 0}
    for pair in arguments.settings:
        name, _, value = pair.partition("=")
        if name not in recipe:
            sys.exit(2)
        recipe[name] = int(value)
    if first:
        run.mkdir(parents=True)
        (run / "config.json").write_text(json.dumps(recipe))


def save():
    if first:
        folder = run / "state" / str(step)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "SHA256SUMS").touch()


step = max((int(path.parent.name) for path in run.glob("state/*/SHA256SUMS")), default=0)
if first and step:
    print(f"resumed {run} at outer step {step}", flush=True)
while step < recipe["outer_steps"] and not stop:
    time.sleep(0.1)
    step += 1
    if step % recipe["save_every"] == 0:
        save()
save()
if step < recipe["outer_steps"]:
    if first:
        (run / "REQUEUE").touch()
    sys.exit(85)
