"""What a user sees when something is wrong: one message, an exit status, no traceback.

2 for what the user gave (an option, a file, a missing package), 1 for a run that failed, 130 for
an interrupt. ``--debug`` or ``INFER_ALIGN_DEBUG=1`` lets the exception through.
"""

import functools
import os
import site
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import typer

from infer_align.cli.escapes import printable

DEBUG: ContextVar[bool] = ContextVar("infer_align_debug", default=False)
BEGAN: ContextVar[bool] = ContextVar("infer_align_began", default=False)
"""Whether a command began: else its help or the version was all there was to print."""
PACKAGE = str(Path(__file__).resolve().parents[1]) + os.sep
CATALOGUE = os.path.join(PACKAGE, "_models")
LONGEST = 4000
"""Characters of an exception's message that are shown."""
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
    """A command whose exceptions become one message and an exit status.

    Those too that are meant to end a program: a target file that calls ``sys.exit`` is an error.
    """

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        BEGAN.set(True)
        try:
            command(*args, **options)
        except typer.Exit:
            raise
        except BaseException as error:
            message, code = describe(error)
            if DEBUG.get():
                if isinstance(error, SystemExit):  # the one that would end without a traceback
                    raise RuntimeError(message) from error
                raise
            typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
            typer.echo(printable(message), err=True)
            raise typer.Exit(code) from None

    return run


@contextmanager
def evaluating(where: str) -> Iterator[None]:
    """Name the target in an exception that a library raised on what the target gave it.

    Parameters
    ----------
    where : str
        File and function.

    Raises
    ------
    Stop
        In place of whatever is no message for the user (ValueError, OSError and ImportError are).
    """
    try:
        yield
    except (Stop, ValueError, OSError, ImportError, typer.Exit):
        raise
    except Exception as error:
        if DEBUG.get():
            raise
        hint = ""
        if isinstance(error, AssertionError):
            hint = (
                ". An assertion fails where a log-potential is NaN or +inf, or a distribution's "
                "parameters are not valid: check them on a single outcome"
            )
        raise Stop(f"{where} cannot be evaluated: {explain(error)}{hint}", code=1) from error


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
    if isinstance(error, SystemExit):
        return explain(error), 1
    return f"{explain(error)}\n(--debug shows the traceback)", 1


def explain(error: BaseException) -> str:
    """What an exception says, and where in the user's own file it was raised.

    The place is the last frame that is neither ours nor a library's. What our own code raises as
    a ``ValueError`` is a message for the user; of anything else the kind is named too.
    """
    frames = traceback.extract_tb(error.__traceback__)
    user = _users_frame(error)
    ours = not frames or _is_ours(frames[-1].filename)
    text = _words(error)
    if isinstance(error, MemoryError):
        text = f"out of memory{text and ': '}{text}: take less at a time (--n, --token-budget)"
    elif isinstance(error, SystemExit):
        text = f"the program was ended by sys.exit({error.code!r}), not by infer-align"
    elif not text:
        line = f" at `{frames[-1].line}`" if frames and frames[-1].line else ""
        text = f"{type(error).__name__}, without a message{line}"
    elif not isinstance(error, ValueError | OSError) or (user is not None and not ours):
        text = f"{type(error).__name__}: {text}"
    if user is None:
        return text
    place = "" if user.name == "<module>" else f"in {user.name}, "
    return f"{text} ({place}{user.filename}, line {user.lineno})"


def _words(error: BaseException) -> str:
    try:
        text = str(error).strip()
    except Exception:  # an exception of the user's that cannot say what it is
        return ""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def _users_frame(error: BaseException) -> traceback.FrameSummary | None:
    """The last frame in a file of the user's, of the exception or of what caused it."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            library = _is_ours(frame.filename) or frame.filename.startswith(_libraries())
            if os.path.isabs(frame.filename) and not library:  # others are of compiled modules
                return frame
        cause = cause.__cause__
    return None


def _is_ours(filename: str) -> bool:
    """Whether a file is the package's; its catalogue reads as a user's file would."""
    return filename.startswith(PACKAGE) and not filename.startswith(CATALOGUE)


@functools.cache
def _libraries() -> tuple[str, ...]:
    """Folders of the standard library and of installed packages."""
    paths = sysconfig.get_paths()
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    found = {paths[name] for name in names} | {str(Path(functools.__file__).parent)}
    found |= {*site.getsitepackages(), site.getusersitepackages()}
    return tuple(folder + os.sep for folder in sorted(found))


def extra_of(module: str | None) -> str | None:
    """The extra of infer_align that brings a module."""
    top = (module or "").partition(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if top in modules), None)


def install_line(extra: str) -> str:
    """The exact line that installs an extra."""
    return f"pip install 'infer_align[{extra}]'"
