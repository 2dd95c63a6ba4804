"""What a user sees when something is wrong: one message, an exit status, no traceback.

2 for what the user gave (an option, a file, a missing package), 1 for a run that failed, 130 for
an interrupt. ``--debug`` or ``INFER_ALIGN_DEBUG=1`` lets the exception through.
"""

import functools
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import typer

DEBUG: ContextVar[bool] = ContextVar("infer_align_debug", default=False)
PACKAGE = str(Path(__file__).resolve().parents[1])
EXTRAS = {
    "torch": ("torch", "pyro", "transformers", "peft", "safetensors", "gguf", "vaderSentiment"),
    "jax": ("jax", "numpyro", "optax"),
    "diversity": ("sacrebleu",),
}


class Stop(Exception):
    """Ends a command with a message and an exit status."""

    def __init__(self, message: str, *, code: int = 2):
        super().__init__(message)
        self.code = code


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose exceptions become one message and an exit status."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except (Exception, KeyboardInterrupt) as error:
            if DEBUG.get() or isinstance(error, typer.Exit):
                raise
            message, code = describe(error)
            typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
            typer.echo(message, err=True)
            raise typer.Exit(code) from None

    return run


def describe(error: BaseException) -> tuple[str, int]:
    """The message and the exit status of an exception."""
    if isinstance(error, Stop):
        return str(error), error.code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, ModuleNotFoundError) and (extra := extra_of(error.name)):
        return f"{error.name} is not installed; it comes with: {install_line(extra)}", 2
    if isinstance(error, ValueError | OSError):
        return explain(error), 2
    return f"{explain(error)}\n(--debug shows the traceback)", 1


def explain(error: BaseException) -> str:
    """What an exception says, and where in the user's own file it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = next((f for f in reversed(frames) if not f.filename.startswith(PACKAGE)), None)
    ours = not frames or frames[-1].filename.startswith(PACKAGE)
    text = str(error) or type(error).__name__
    if not isinstance(error, ValueError | OSError):
        text = f"{type(error).__name__}: {error}".rstrip(": ")
    if ours or where is None or "site-packages" in where.filename:
        return text
    return f"{text} (in {where.name}, {where.filename}, line {where.lineno})"


def extra_of(module: str | None) -> str | None:
    """The extra of infer_align that brings a module."""
    top = (module or "").partition(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if top in modules), None)


def install_line(extra: str) -> str:
    """The exact line that installs an extra."""
    return f"pip install 'infer_align[{extra}]'"
