"""What a run shows: a bar that fits the terminal, elsewhere a line every half a minute at least."""

import io
import re
import time

import pytest

from meta_train.run import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("columns", [20, 40, 120])
def test_a_bar_fits_the_terminal(monkeypatch, columns):
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = progress.begin(8_000_000, 1_000_000)
    for step in (2_000_000, 5_000_000, 8_000_000):
        shown.update(step, -1.25, 123456789.0)
    shown.close()
    first, *drawn = [line for line in re.split("[\r\n]", terminal.getvalue()) if line]
    assert first == "compiling ..." and drawn[0].startswith("1000000/8000000 |"[:columns])
    assert len(drawn) > 1 and max(map(len, drawn)) < columns
    if columns == 120:
        assert drawn[-1].startswith("8000000/8000000 |") and "meta-loss -1.2500, 123,456,789 inner steps/s" in drawn[-1]


def test_lines_come_while_compiling_and_during_long_dispatches(capsys):
    shown = progress.Lines(80, 40, every=0.05)
    time.sleep(0.2)
    assert capsys.readouterr().out.count("still compiling\n") >= 2
    shown.update(60, -1.25, 1000.0)
    first = capsys.readouterr().out
    assert first.startswith("outer step 60 of 80  meta-loss -1.2500  1,000 inner steps/s  0.0 min left\n")
    time.sleep(0.2)
    assert capsys.readouterr().out.count("outer step 60 of 80") >= 2
    shown.update(80, -1.5, 1000.0)
    shown.close()
    assert "outer step 80 of 80" in capsys.readouterr().out
    time.sleep(0.1)
    assert capsys.readouterr().out == ""


def test_few_quick_dispatches_are_two_lines(capsys):
    shown = progress.Lines(80, 0)
    for step in range(10, 90, 10):
        shown.update(step, 0.0, 1.0)
    shown.close()
    assert [line.partition("  ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "outer step 10 of 80",
        "outer step 80 of 80",
    ]
