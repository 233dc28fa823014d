"""All benchmarks: ``python -m tests.bench``. JSON lines as they come, then tables.

Each runs in a process of its own, since the number of devices is fixed at start. The
machine should be idle.
"""

import json
import os
import subprocess
import sys

RUNS = [
    ["tests.bench.throughput", "1"],
    ["tests.bench.throughput", str(os.cpu_count())],
    ["tests.bench.step_breakdown"],
    ["tests.bench.estimators"],
    ["tests.bench.update"],
    ["tests.bench.compile"],
    ["tests.bench.update_breakdown"],
]


def main() -> None:
    rows = []
    for arguments in RUNS:
        with subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                rows.append(json.loads(line))
        if process.returncode:
            sys.exit(process.returncode)
    for bench in dict.fromkeys(row["bench"] for row in rows):
        print_table([row for row in rows if row["bench"] == bench])


def print_table(rows: list[dict]) -> None:
    lines = [list(rows[0]), *[[f"{v:,}" if isinstance(v, int) else str(v) for v in row.values()] for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    print()
    for line in lines:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))


if __name__ == "__main__":
    main()
