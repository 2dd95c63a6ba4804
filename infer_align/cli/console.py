"""What a command prints: plain lines, tables, and a progress bar where there is a terminal."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

LIVE = (
    ("reward", "potential"),
    ("kl_prior", "KL(π‖prior)"),
    ("reverse_kl", "KL(π‖p)"),
    ("forward_kl", "KL(p‖π)"),
    ("ess", "ESS/n"),
)
"""Metrics shown while fitting, and their names; the potential is log, reward/β of a tilt."""


def say(text: str = "") -> None:
    """Print a line on standard output."""
    typer.echo(text)


def notice(text: str) -> None:
    """Print a line on standard error: something to know, not an error."""
    typer.secho(f"note: {text}", fg="yellow", err=True)


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
    if not sys.stdout.isatty():
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
                    yield Text("  " + task.fields["live"], style="dim")

    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("[dim]{task.fields[pace]}"),
    )
    with Bar(*columns) as bar:
        out.bar = bar
        out.task = bar.add_task(label, total=total, completed=done, live="", pace="")
        yield out
