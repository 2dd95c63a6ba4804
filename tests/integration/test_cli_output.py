"""What is printed: it ends no run, is strict JSON, and moves no cursor."""

import errno
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer_align.cli import app, console, figures, fitting, models, report, tables
from infer_align.cli.errors import describe, explain
from infer_align.cli.escapes import printable, spell, to_json
from infer_align.cli.evaluation import Sample

DIRTY = "\x1b[2J\x07\x9b3J\u202egnp.exe\u2066\u2028\x85\r\x00\ud800\x7f"
CLEAN = r"\x1b[2J\x07\x9b3J\u202egnp.exe\u2066\u2028\x85\x0d\x00\ud800\x7f"


def test_control_characters_are_shown_as_escapes() -> None:
    assert printable(DIRTY) == CLEAN
    assert printable("a\tb\nβ 中 \u0645 \U0001f600") == "a\tb\nβ 中 \u0645 \U0001f600"


def test_json_is_strict_one_line_and_keeps_every_character() -> None:
    value = {"a": [math.inf, -math.inf, math.nan, np.float64(1.5)], "text": DIRTY + "β"}
    line = to_json(value)
    assert len(line.splitlines()) == 1
    assert printable(line) == line
    assert json.loads(line) == {"a": ["inf", "-inf", "nan", 1.5], "text": DIRTY + "β"}
    assert "β" in line
    assert to_json(value, ascii_only=True).isascii()


def test_what_an_encoding_lacks_is_spelled_or_escaped() -> None:
    assert spell("KL(π‖p) é 中", "latin-1") == r"KL(pi||p) é \u4e2d"
    assert spell("✓ é", "ascii") == r"+ \xe9"


class Closing(io.StringIO):
    """A pipe whose reader goes after some characters."""

    def __init__(self, left: int, error: Exception):
        super().__init__()
        self.left, self.error = left, error

    def write(self, text: str) -> int:
        self.left -= len(text)
        if self.left < 0:
            raise self.error
        return super().write(text)


def outcome(arguments: list[str], stdout: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "stdout", stdout)
    with pytest.raises(SystemExit) as stopped:
        app(arguments)
    return int(stopped.value.code or 0)


@pytest.mark.parametrize("arguments", [["models"], ["--help"], ["fit", "--help"], ["--version"]])
@pytest.mark.parametrize(
    ("error", "status"),
    [(BrokenPipeError(errno.EPIPE, "gone"), 141), (OSError(errno.ENOSPC, "disk full"), 2),
     (ValueError("I/O operation on closed file"), 2)],
)  # fmt: skip
def test_a_product_that_cannot_be_printed_is_no_success(
    arguments: list[str],
    error: Exception,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    """The help was lost with status 0."""
    assert outcome(arguments, Closing(5, error), monkeypatch) == status
    shown = capsys.readouterr().err
    assert ("cannot be written" in shown) == (status == 2)


def test_help_that_is_printed_is_a_success(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    taken = io.StringIO()
    assert outcome(["fit", "--help"], taken, monkeypatch) == 0
    assert "TARGET.py" in taken.getvalue()
    full = Closing(0, OSError(errno.ENOSPC, "full"))
    assert outcome(["fit", "--no-such"], full, monkeypatch) == 2
    assert "cannot be written" not in capsys.readouterr().err


def test_a_command_that_began_is_not_its_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit's progress may be lost: what it leaves is its run folder."""
    monkeypatch.setattr(fitting, "start", lambda *given, **options: console.say("step 1"))
    full = Closing(0, OSError(errno.ENOSPC, "full"))
    target = Path(models.__file__).resolve()
    assert outcome(["fit", str(target)], full, monkeypatch) == 0


def test_a_closed_standard_output_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        with console.steady_output():
            console.say("π")
            tables.print_table(["π"], [["✓"]])
            with console.meter("step", 2) as bar:
                bar.advance(1)
            with pytest.raises(OSError, match="closed"):
                console.delivered()
    # Latin-1 has neither π nor ‖.
    raw = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1"))
        with console.steady_output():
            console.say("KL(π‖p)")
            console.record({"completion": "é中"})
    lines = raw.getvalue().decode("latin-1").splitlines()
    assert lines[0] == "KL(pi||p)"
    assert json.loads(lines[1]) == {"completion": "é中"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
def test_real_processes_end_as_their_output_does(root: Path) -> None:
    """A full disk, a reader that has gone: one sentence, a status, no traceback."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "infer_align.cli", "models"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True,
                              env=environment)  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    with Path("/dev/full").open("w") as full:
        told = subprocess.run([*command[:-1], "fit", "--help"], stdout=full, env=environment,
                              stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert (told.returncode, told.stderr) == (2, done.stderr)
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_tables_samples_and_errors_move_no_cursor(capsys: Any) -> None:
    tables.print_table(["x"], [["a" + DIRTY]])
    tables.print_samples("after", [Sample("p", "\x1b[2J\u202e", 1.0)])
    console.notice(DIRTY)
    shown = capsys.readouterr()
    assert printable(shown.out + shown.err) == shown.out + shown.err
    assert shown.out.count(r"\x1b[2J") == 2


def test_a_figure_takes_a_dollar_and_an_escape_for_what_they_are() -> None:
    drawn = figures.svg(lambda ax: ax.set_title(r"$\frac$ of"), "dollar")
    assert "of" in drawn


def test_a_page_holds_no_control_character() -> None:
    body = report._samples("after", [Sample("p", DIRTY, None)], 1)
    page = report._page("t" + DIRTY, [body])
    assert printable(page) == page
    assert page.count(r"\x1b[2J") == 2


USERS = """
import json
import sys

def parse(text):
    return json.loads(text)

def stop(code):
    sys.exit(code)

def mute(x):
    assert x

class Odd(Exception):
    def __str__(self):
        raise RuntimeError

def odd():
    raise Odd
"""


def raised(name: str, argument: tuple[Any, ...], tmp_path: Path) -> BaseException:
    path = tmp_path / "users.py"
    path.write_text(USERS)
    space: dict[str, Any] = {}
    exec(compile(USERS, str(path), "exec"), space)
    try:
        space[name](*argument)
    except BaseException as error:
        return error
    raise AssertionError


def test_errors_name_the_users_file_where_a_library_raised(tmp_path: Path) -> None:
    """The last frame is of the standard library's json; the fault is in the user's line 6."""
    place = f"(in parse, {tmp_path / 'users.py'}, line 6)"
    error = raised("parse", ("{",), tmp_path)
    assert explain(error).startswith("JSONDecodeError: Expecting property name")
    assert explain(error).endswith(place)
    assert describe(error)[1] == 2
    wrapped = ValueError("the reward cannot be evaluated")
    wrapped.__cause__ = error
    assert explain(wrapped) == f"the reward cannot be evaluated {place}"


def test_what_says_nothing_or_ends_the_program_gets_words(tmp_path: Path) -> None:
    message, status = describe(raised("stop", (0,), tmp_path))
    assert message.startswith("the program was ended by sys.exit(0), not by infer-align (in stop, ")
    assert status == 1
    assert explain(raised("mute", (0,), tmp_path)).startswith("AssertionError, without a message")
    assert explain(raised("odd", (), tmp_path)).startswith("Odd, without a message")
    assert explain(MemoryError()).startswith("out of memory: take less at a time")
    assert describe(KeyboardInterrupt()) == ("interrupted", 130)


def test_an_interrupt_before_a_command_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("typer.Typer.__call__", interrupted)
    with pytest.raises(SystemExit) as stopped:
        app(["models"])
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "error: interrupted\n"
