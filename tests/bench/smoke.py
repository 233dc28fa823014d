"""Every family meta-trained for a minute, with ES-Single and with PES: does the meta-loss fall?

The meta-loss is the mean, over an episode, of the log of the validation loss relative to
its start; 0.01 is an optimizer that does nothing. Means of the first and last ten outer steps.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FAMILIES = ("velo", "celo", "celo-adam", "celo2", "mulo", "open", "l2o-pa", "l2o-dm", "rnnprop")


def main() -> None:
    for family in FAMILIES:
        for estimator in ("es_single", "pes"):
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                command = ["train", f"digits-{family}", "--dir", f"{folder}/run", f"estimator={estimator}"]
                subprocess.run([sys.executable, "-m", "meta_train.cli", *command], check=True, capture_output=True)
                rows = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
            losses = [json.loads(row)["meta_loss"] for row in rows]
            mean = lambda values: round(sum(values) / len(values), 2)
            row = {
                "bench": "smoke",
                "recipe": f"digits-{family}",
                "estimator": estimator,
                "first": mean(losses[:10]),
                "last": mean(losses[-10:]),
                "seconds": round(time.perf_counter() - began),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
