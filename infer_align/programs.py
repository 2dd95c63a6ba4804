"""Programs as targets: what a program is for, Pyro or NumPyro, is seen at its first message.

It runs up to there. Nothing is imported that it has not imported itself, nothing is drawn, no
random generator moves, and no reward is called: the run ends before its first site is sampled.
"""

import importlib
import inspect
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from infer_align._threads import alone
from infer_align.targets import Target

__all__ = ["as_target", "library_of"]

BACKENDS = {"numpyro": "jax", "pyro": "torch"}
"""Library of a program: the subpackage that makes it a target."""


def as_target(target: Any, *contexts: Any) -> Target:
    """A target, from one or from a Pyro or NumPyro program as it stands.

    Parameters
    ----------
    target : Target, or Pyro or NumPyro program
    *contexts : Any
        What the program is called with; a `Target` ignores them.

    Returns
    -------
    Target
        The target itself; of a program ``infer_align.jax.target`` or ``infer_align.torch.target``.

    Raises
    ------
    TypeError
        If it is neither, or the program does not take these contexts.
    ValueError
        If the program ends without a message to either library.

    Examples
    --------
    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from infer_align.programs import as_target
    >>> def program():
    ...     y = numpyro.sample("y", dist.Categorical(jnp.array([0.5, 0.3, 0.2])))
    ...     numpyro.factor("reward", 1.0 * y)
    >>> as_target(program).name
    'program'
    """
    if isinstance(target, Target):
        return target
    if not callable(target):
        raise TypeError(f"needed is a Target or a program, got {type(target).__name__}")
    # Not an import of a higher layer: the program has loaded the library already.
    backend = BACKENDS[library_of(target, *contexts)]
    return importlib.import_module(f"infer_align.{backend}").target(target)


def library_of(program: Callable[..., Any], *contexts: Any) -> str:
    """The library of a program, ``"pyro"`` or ``"numpyro"``: the one that gets its first message.

    Parameters
    ----------
    program : callable
        It runs up to its first ``sample``, ``factor``, ``param``, ``plate`` or ``deterministic``.
    *contexts : Any
        What it is called with.

    Raises
    ------
    TypeError
        If it does not take these contexts.
    ValueError
        If it ends without a message.
    """
    if unbound := _unbound(program, contexts):
        raise TypeError(unbound)
    with alone(), ExitStack() as handlers:
        for name in BACKENDS:
            if name in sys.modules:
                handlers.enter_context(_listener(name))
        try:
            program(*contexts)
        except _HeardError as first:
            return first.library
    raise ValueError(
        f"program {getattr(program, '__name__', program)!r} sent no message to pyro or numpyro "
        "(no pyro.sample, no numpyro.sample, ...), so that it declares no target; if it is hidden "
        "from handlers, say which: infer_align.torch.target(program) or infer_align.jax.target(...)"
    )


def _unbound(program: Callable[..., Any], contexts: tuple[Any, ...]) -> str:
    """What is wrong with the number of contexts, if it is."""
    try:
        inspect.signature(program).bind(*contexts)
    except ValueError:  # of a builtin, say, that has no signature
        return ""
    except TypeError as reason:
        return (
            f"program {getattr(program, '__name__', program)!r} cannot be called with the "
            f"{len(contexts)} contexts given: {reason}; give what it is conditioned on after it"
        )
    return ""


class _HeardError(BaseException):
    """The first message; no `except Exception` of the program holds it back."""

    def __init__(self, library: str) -> None:
        super().__init__(library)
        self.library = library


def _listener(library: str) -> Any:
    """A handler of a library that ends the program at its first message."""
    module, method = {
        "numpyro": ("numpyro.primitives", "process_message"),
        "pyro": ("pyro.poutine.messenger", "_process_message"),
    }[library]

    def hear(self: Any, message: Any) -> None:
        raise _HeardError(library)

    messenger = importlib.import_module(module).Messenger
    return type("Listener", (messenger,), {method: hear})()
