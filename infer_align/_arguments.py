"""Checks of plain arguments that every layer shares: counts, positive numbers, fractions.

NumPy's scalars and arrays of one number are taken as the numbers they are; a boolean is no count,
and nothing is rounded.
"""

import math
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


def number(what: str, value: Any, *, need: str = "a finite number") -> float:
    """A finite real number.

    Raises
    ------
    TypeError
        For what is no real number.
    ValueError
        For NaN and infinities.
    """
    out = _real(what, value, need)
    if not math.isfinite(out):
        raise ValueError(f"{what} must be {need}, got {value}")
    return out


def positive(what: str, value: Any, *, need: str = "positive") -> float:
    """A finite number above 0; ``need`` says in the message what is taken."""
    out = _real(what, value, need)
    if not 0 < out < math.inf:
        raise ValueError(f"{what} must be {need}, got {value}")
    return out


def real(what: str, value: Any, *, need: str = "a number") -> float:
    """A real number, infinite ones included; NaN is none."""
    out = _real(what, value, need)
    if math.isnan(out):
        raise ValueError(f"{what} must be {need}, got {value}")
    return out


def numeric(what: str, value: Any, *, need: str = "a number") -> Any:
    """The value as it is, an array or a tracer too, unless it is text, a boolean or complex."""
    dtype = str(getattr(value, "dtype", ""))
    no_number = isinstance(value, bool) or not hasattr(value, "__float__")
    if no_number or any(kind in dtype for kind in ("complex", "bool", "object", "str")):
        raise TypeError(f"{what} must be {need}, got {value!r} ({type(value).__name__})")
    return value


def scalar(what: str, value: Any, *, need: str = "a number") -> Any:
    """One number, also as an array of a library or a tracer; NumPy's as the number that it is."""
    numeric(what, value, need=need)
    if (shape := tuple(getattr(value, "shape", ()))) != ():
        raise TypeError(
            f"{what} must be {need}, got {type(value).__name__} of shape {shape}; for several, "
            "call once for each"
        )
    return value.item() if isinstance(value, np.ndarray | np.generic) else value


def array(what: str, value: Any, *, need: str = "an array of shape (n, *contexts)") -> Any:
    """An array of NumPy, JAX or torch, as it is."""
    if getattr(value, "shape", None) is None or not hasattr(value, "dtype"):
        raise TypeError(f"{what} must be {need}, got {value!r} ({type(value).__name__})")
    return value


def reals(what: str, value: Any, *, need: str = "an array of numbers", axes: int = 0) -> np.ndarray:
    """Numbers as a NumPy array of float64, of so many axes at least.

    Text, booleans, and what is ragged or complex are no numbers; NaN and infinities are.
    """
    try:
        out = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged, a tracer, a tensor's gradient
        raise TypeError(f"{what} must be {need}, got a {type(value).__name__}: {error}") from None
    if out.ndim < axes:
        raise ValueError(f"{what} must be {need} with {axes} axes or more, got {value!r}")
    if out.dtype == object:  # fractions and decimals, or no numbers at all
        return np.array([_real(f"each entry of {what}", x, "a number") for x in out.flat]).reshape(
            out.shape
        )
    if out.dtype.kind not in "iuf":
        raise TypeError(f"{what} must be {need}, got {out.dtype} entries of shape {out.shape}")
    return out.astype(float)


def count(what: str, value: Any, *, low: int = 1) -> int:
    """A whole number of at least ``low``."""
    need = f"a whole number of at least {low}"
    out = _real(what, value, need)
    if out < low or not math.isfinite(out):
        raise ValueError(f"{what} must be at least {low}, got {value}")
    if out != int(out):
        raise ValueError(f"{what} must be {need}, got {value}")
    return int(value)


def instance(what: str, value: T, kind: type, example: str) -> T:
    """A value of one class, with what to write where it is of another.

    Raises
    ------
    TypeError
    """
    if not isinstance(value, kind):
        shown = getattr(value, "__name__", None) or repr(value)
        spelled = kind.__name__[1:2].isupper()  # "an FDivergence"
        article = "an" if kind.__name__[0] in ("AEFHILMNORSX" if spelled else "AEIOU") else "a"
        raise TypeError(
            f"{what} must be {article} {kind.__name__}, got {shown} ({type(value).__name__}); "
            f"give one, such as {example}"
        )
    return value


def entries(what: str, value: Any, *, of: str = "numbers") -> list[Any]:
    """The entries of a sequence, as a list.

    Raises
    ------
    TypeError
        For a text, a mapping, and what has no entries.
    """
    single = isinstance(value, str | bytes | Mapping) or getattr(value, "shape", None) == ()
    if single or not hasattr(value, "__iter__"):
        raise TypeError(
            f"{what} must be a sequence of {of}, got {value!r} ({type(value).__name__}); write "
            "[...] around a single one"
        )
    return list(value)


def function(what: str, value: Any, takes: str) -> Callable[..., Any]:
    """A function; ``takes`` says of what, and what it gives.

    Raises
    ------
    TypeError
    """
    if not callable(value):
        raise TypeError(
            f"{what} must be a function {takes}, got {value!r} ({type(value).__name__})"
        )
    return value


def mapping(what: str, value: Any, *, entries: str, optional: bool = True) -> dict[str, Any]:
    """A mapping from names, as a dict; None is an empty one where it is optional.

    Raises
    ------
    TypeError
    """
    if value is None and optional:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{what} must be a mapping from names to {entries}, got {value!r} "
            f"({type(value).__name__}); write {{'name': ...}}"
        )
    if bad := [name for name in value if not isinstance(name, str)]:
        raise TypeError(f"{what} are named by texts, and one name is {bad[0]!r}; name it by a text")
    return dict(value)


def features(value: Any) -> dict[str, Callable[..., Any]]:
    """The functions of the outcomes whose means are wanted, by name.

    Raises
    ------
    TypeError
    """
    need = "functions (y, *contexts) -> (n, *contexts)"
    named = mapping("features", value, entries=need)
    for name, feature in named.items():
        if not callable(feature):
            raise TypeError(
                f"feature {name!r} must be one of {need}, got {feature!r} "
                f"({type(feature).__name__})"
            )
    return named


def installed(package: str, extra: str, *libraries: str) -> None:
    """Whether the libraries of an extra are there, before a package of ours imports them.

    Raises
    ------
    ModuleNotFoundError
        With the command that installs them.
    """
    for library in libraries:
        if find_spec(library) is None:
            raise ModuleNotFoundError(
                f"{package} needs {library}, which is not installed: "
                f"pip install 'infer_align[{extra}]'",
                name=library,
            )


def _real(what: str, value: Any, need: str) -> float:
    refused = isinstance(value, bool | str | bytes | complex)
    try:
        if refused or getattr(value, "ndim", 0) or "complex" in str(getattr(value, "dtype", "")):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        message = f"{what} must be {need}, got {value!r} ({type(value).__name__})"
        raise TypeError(message) from None
