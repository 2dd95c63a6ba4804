"""What a command prints: plain lines, tables, and a progress bar where there is a terminal.

Printing never ends a run: what a stream cannot take, closed, full, or of an encoding without our
letters, is spelled or dropped (`Steady`). A command whose printing is its product says so at the
end (`delivered`).
"""

import errno
import io
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import typer

from infer_align.cli.escapes import printable, spell, to_json

if TYPE_CHECKING:
    from rich.console import Console

LIVE = (
    ("log_potential", "log-potential"),
    ("kl_prior", "KL(π‖prior)"),
    ("reverse_kl", "KL(π‖p)"),
    ("forward_kl", "KL(p‖π)"),
    ("ess", "ESS/n"),
)
"""Metrics shown while fitting, and their names; the log-potential of a tilt is reward/β."""


class Steady(io.TextIOBase):
    """A standard stream that cannot fail: what it does not take is dropped, and remembered.

    Parameters
    ----------
    stream : file, or None
        None is a stream that was closed before we began.
    """

    def __init__(self, stream: Any):
        self.stream: Any = stream
        self.lost: Exception | None = None if stream is not None else OSError("it is closed")

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether it is a terminal, which a closed stream is not."""
        try:
            return bool(self.stream.isatty())
        except (AttributeError, ValueError, OSError):
            return False

    def fileno(self) -> int:
        """Of the stream; OSError without one."""
        if self.stream is None:
            raise io.UnsupportedOperation("fileno of a closed stream")
        return int(self.stream.fileno())

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, text: str) -> int:
        """Write what can be written."""
        self._try("write", spell(text, self.encoding))
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        self._try("flush")

    def _try(self, what: str, *arguments: str) -> None:
        if self.lost is not None:
            return
        try:
            getattr(self.stream, what)(*arguments)
        except (OSError, ValueError) as error:  # ValueError: of a closed file
            self.lost = error
            self._abandon()

    def _abandon(self) -> None:
        """Point the descriptor elsewhere, or Python fails at its end to flush what is left."""
        try:
            if any(self.stream is standard for standard in (sys.__stdout__, sys.__stderr__)):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())
                os.close(nowhere)
        except (OSError, ValueError, AttributeError):
            pass


@contextmanager
def steady_output() -> Iterator[None]:
    """Both standard streams `Steady` while something runs, and flushed at its end."""
    old = sys.stdout, sys.stderr
    steady = sys.stdout, sys.stderr = Steady(old[0]), Steady(old[1])
    try:
        yield
    finally:
        for stream in steady:
            stream.flush()
        sys.stdout, sys.stderr = old


def others_aside() -> AbstractContextManager[Any]:
    """While the user's file runs, what it prints goes to standard error: ours is a product."""
    return redirect_stdout(sys.stderr)


def delivered() -> None:
    """Make sure that everything printed so far has arrived, where that is what was asked for.

    Raises
    ------
    typer.Exit
        With 141, as of SIGPIPE, if the reader has gone: ``head`` has read enough.
    OSError
        If standard output is closed, or its disk is full.
    """
    sys.stdout.flush()
    lost = sys.stdout.lost if isinstance(sys.stdout, Steady) else None
    if isinstance(lost, OSError) and lost.errno in (errno.EPIPE, errno.ESHUTDOWN):
        raise typer.Exit(141)
    if lost is not None:
        raise OSError(f"standard output cannot be written: {lost}; give it a file that can")


def say(text: str = "") -> None:
    """Print a line on standard output."""
    typer.echo(printable(text))


def record(value: Any) -> None:
    """Print a value as a line of strict JSON."""
    line = to_json(value)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if spell(line, encoding) != line:  # escapes of JSON, not ours
        line = to_json(value, ascii_only=True)
    typer.echo(line)
    if isinstance(sys.stdout, Steady) and sys.stdout.lost is not None:
        delivered()


def notice(text: str) -> None:
    """Print a line on standard error: something to know, not an error."""
    typer.secho(f"note: {printable(text)}", fg="yellow", err=True)


@contextmanager
def warnings_as_notices() -> Iterator[None]:
    """Print warnings as notices: without the place in the library that they come from."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning)
        warnings.showwarning = lambda message, *rest: notice(str(message))
        yield


def console() -> "Console":
    """A Rich console that never wraps what it prints to a file."""
    from rich.console import Console

    plain = Console()
    return plain if plain.is_terminal else Console(width=200, highlight=False)


def live_text(metrics: Mapping[str, float]) -> str:
    """The metrics of a step in one line."""
    return "  ".join(f"{label} {metrics[key]:z.3f}" for key, label in LIVE)


class Meter:
    """Progress of a loop of known length: a bar with live numbers, or plain lines in a file.

    Parameters
    ----------
    label : str
        What is counted.
    total : int
        Length of the loop.
    done : int
        How much of it was done before.
    lines : int
        Plain lines to print at most.
    """

    def __init__(self, label: str, total: int, *, done: int = 0, lines: int = 20):
        self.label, self.total, self.first, self.done = label, total, done, done
        self.every = max(1, total // lines)
        self.printed = done
        self.start = time.monotonic()
        self.bar: Any = None
        self.task: Any = None

    def advance(self, done: int, text: str = "") -> None:
        """Show that ``done`` is reached."""
        self.done = done
        if self.bar is not None:
            self.bar.update(self.task, completed=done, live=text, pace=self.pace())
        elif done - self.printed >= self.every or done >= self.total or done == self.first + 1:
            self.printed = done
            say(f"{self.label} {done}/{self.total}  {text}  {self.pace()}".replace("    ", "  "))

    def pace(self) -> str:
        """Seconds per step and the time left."""
        count = self.done - self.first
        if count == 0:
            return ""
        each = (time.monotonic() - self.start) / count
        left = int(each * (self.total - self.done))
        return f"{_seconds(each)}, {left // 60}:{left % 60:02d} left"


def _seconds(each: float) -> str:
    if each >= 0.1:
        return f"{each:.2f} s each"
    return f"{each * 1000:.0f} ms each" if each >= 0.01 else f"{1 / max(each, 1e-9):.0f} a second"


@contextmanager
def meter(label: str, total: int, *, done: int = 0, lines: int = 20) -> Iterator[Meter]:
    """A `Meter`, drawn by Rich on a terminal."""
    out = Meter(label, total, done=done, lines=lines)
    if sys.stdout is None or not sys.stdout.isatty():
        yield out
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.text import Text

    class Bar(Progress):
        """A bar with the live numbers on a line of their own, so that 80 columns suffice."""

        def get_renderables(self) -> Iterator[Any]:
            yield from super().get_renderables()
            for task in self.tasks:
                if task.fields["live"]:
                    live = task.fields["live"].replace("  ", " ")
                    yield Text(live, style="dim", overflow="fold")

    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("[dim]{task.fields[pace]}"),
    )
    with Bar(*columns, console=console()) as bar:
        out.bar = bar
        out.task = bar.add_task(label, total=total, completed=done, live="", pace="")
        yield out
