"""The command line under fuzzed command lines: a message or a result, never a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts import fuzz_cli
from scripts.fuzz_cli import Line, judge

SEED = 159
QUICK = (0, 1, 3, 5, 6, 8, 9, 10, 12, 13, 14, 17, 18, 19, 21, 24, 25, 26, 27, 28, 30, 36, 37, 38,
         40, 41, 43, 46, 47, 50, 52, 55, 58, 66, 67, 68, 69, 70, 75, 76)  # fmt: skip
"""Lines of that seed that compile no program and fit hardly any model."""


def test_a_few_fuzzed_command_lines() -> None:
    pytest.importorskip("torch")
    lines = fuzz_cli.fuzz(SEED, list(QUICK), set(), verbose=False)
    assert [(line.number, line.arguments, line.faults) for line in lines if line.faults] == []
    assert {line.status for line in lines} >= {0, 2}


@pytest.mark.slow
def test_many_fuzzed_command_lines(root: Path) -> None:
    command = [sys.executable, "scripts/fuzz_cli.py", "--count", "2000", "--processes", "100"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_a_fault_is_found_and_shown(tmp_path: Path) -> None:
    """A command that fails without a word, one that prints a traceback, one that does nothing."""
    silent = Line(0, ["fit"], status=1)
    loud = Line(1, ["fit"], status=1, err="Traceback (most recent call last)\n")
    idle = Line(2, ["sample", "t.py"], status=0)
    bare = Line(3, ["fit"], status=1, err="error: KeyError: 'settings'\n")
    odd = Line(4, ["exact", "t.py", "--json"], status=0, out='{"a": Infinity}\n')
    moves = Line(5, ["models"], status=0, out="\x1b[2J\n")
    strange = Line(6, ["fit"], status=120, err="error: x\n")
    for line in (silent, loud, idle, bare, odd, moves, strange):
        judge(line, tmp_path)
    assert [line.faults[0].split(":")[0] for line in (silent, loud, idle, bare, odd, moves)] == [
        "fails without a message", "prints a traceback", "succeeds and did nothing",
        "says the name of an exception, and of no file of the user's",
        "succeeds and did nothing", "prints control characters",
    ]  # fmt: skip
    assert strange.faults == ["exit status 120"]
    good = Line(7, ["models"], status=0, out="tiny\n")
    judge(good, tmp_path)
    assert not good.faults
