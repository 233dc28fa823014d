"""Replays golden files: ``python -m tests.golden FILE...``

Prints the largest error of each case in units of its tolerance. Exit code 0: all cases
pass; 1: one fails; 2: no file is given, one that no function here can replay, or weights that it needs are absent.
"""

import sys
from pathlib import Path

from tests.golden import find_replay


def main(paths: list[str]) -> int:
    if not paths:
        print(__doc__)
        return 2
    code = 0
    for path in map(Path, paths):
        replay = find_replay(path)
        if replay is None or not path.is_file():
            print(f"{path.name}: {'unsupported' if path.is_file() else 'no such file'}")
            code = code or 2
            continue
        try:
            cases = replay(path)
        except FileNotFoundError as error:
            print(f"{path.name}: {error}")
            code = code or 2
            continue
        for case, error in cases:
            print(f"{path.name}: {case}: {error:.3f} of the tolerance{'' if error <= 1 else '  FAILED'}")
            code = code if error <= 1 else 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
