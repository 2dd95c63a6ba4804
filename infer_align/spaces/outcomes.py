"""Lists of outcomes as NumPy integers: making them, checking them, finding one in them."""

import math
from typing import Any

import numpy as np
from array_api_compat import is_torch_array

from infer_align._arguments import array
from infer_align._numerics import Array, namespace

Outcomes = Any
"""An array with outcomes on axis 0, or one of each named site."""
MAX_ENTRIES = 4_000_000
"""Numbers that make up all listed outcomes: tokens of all sequences, or of one of each type."""


def all_sequences(vocabulary_size: int, length: int, ends: tuple[int, ...], pad: int) -> np.ndarray:
    """Every token sequence up to its first end token, padded, in lexicographic order."""
    if vocabulary_size < 1 or length < 1:
        raise ValueError(
            "sequences need a vocabulary and a length of at least 1, got vocabulary_size="
            f"{vocabulary_size} and length={length}"
        )
    if outside := [token for token in ends if not 0 <= token < vocabulary_size]:
        raise ValueError(f"eos {outside} lies outside the vocabulary 0..{vocabulary_size - 1}")
    tokens = np.arange(vocabulary_size)
    rows, ended = np.zeros((1, 0), dtype=np.int64), np.zeros(1, dtype=bool)
    for _ in range(length):
        # A finished row has one continuation, the padding; any other has the vocabulary.
        copies = np.where(ended, 1, vocabulary_size)
        column = np.where(
            np.repeat(ended, copies), pad, np.concatenate([tokens[:c] for c in copies])
        )
        ended = np.repeat(ended, copies) | np.isin(column, ends)
        rows = np.column_stack([np.repeat(rows, copies, axis=0), column])
    return rows


def repeated(values: Array, shape: tuple[int, ...]) -> Array:
    """Values (N, *event) for every context, (N, *contexts, *event)."""
    xp = namespace(values)
    n, *event = values.shape
    spread = xp.reshape(values, (n, *(1,) * len(shape), *event))
    return xp.broadcast_to(spread, (n, *shape, *event))


def check_distinct(outcomes: Outcomes) -> None:
    """Refuse an empty list of outcomes, one that lists an outcome twice, or unequal sites."""
    for name, values in _sites(outcomes).items():
        what = f"outcomes[{name!r}]" if isinstance(outcomes, dict) else "outcomes"
        array(what, values, need="an array, one outcome a row")
        if not values.shape or values.shape[0] == 0:
            raise ValueError(
                f"a space needs at least one outcome on axis 0, got shape {tuple(values.shape)}"
            )
    if not _sites(outcomes):
        raise ValueError("a space of named sites needs at least one site, got an empty dict")
    numbers = {name: values.shape[0] for name, values in _sites(outcomes).items()}
    if len(set(numbers.values())) > 1:
        raise ValueError(
            f"the sites of a space list different numbers of outcomes, {numbers}; give one row of "
            "each site to every outcome"
        )
    values, counts = np.unique(_rows(outcomes, 1), axis=0, return_counts=True)
    if counts.max() > 1:
        raise ValueError(
            f"outcome {values[np.argmax(counts)].tolist()} is listed {counts.max()} times; "
            "list every outcome once, or its probability counts more than once"
        )


def positions(sampled: Outcomes, outcomes: Outcomes) -> np.ndarray:
    """Index into ``outcomes`` of each sampled outcome, of the samples' leading shape.

    It is −1 of what is not among them.
    """
    if _names(sampled) != _names(outcomes):
        raise ValueError(
            f"outcomes have {_names(sampled)} and this space has {_names(outcomes)}; give every "
            "site its values, and no other"
        )
    shape = _leading(sampled, outcomes)
    known, wanted = _rows(outcomes, 1), _rows(sampled, len(shape))
    _, labels = np.unique(np.concatenate([known, wanted]), axis=0, return_inverse=True)
    labels = labels.reshape(-1)
    position = np.full(labels.max() + 1, -1)
    position[labels[: len(known)]] = np.arange(len(known))
    return position[labels[len(known) :]].reshape(shape)


def distinct(outcomes: Outcomes) -> tuple[np.ndarray, np.ndarray]:
    """Where each distinct outcome is listed first, (M,), and which of these each one is, (N,)."""
    _, first, member = np.unique(_rows(outcomes, 1), axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)  # of appearance, not of value
    return first[order], np.argsort(order)[member.reshape(-1)]


def first_missing(sampled: Outcomes, found: np.ndarray) -> list[Any]:
    """The first sampled outcome whose position is −1, its sites one after the other."""
    return _rows(sampled, found.ndim)[np.argmax(found.ravel() < 0)].tolist()


def _names(outcomes: Outcomes) -> str:
    return f"sites {sorted(outcomes)}" if isinstance(outcomes, dict) else "one array"


def _sites(outcomes: Outcomes) -> dict[str, Array]:
    return outcomes if isinstance(outcomes, dict) else {"": outcomes}


def _leading(sampled: Outcomes, outcomes: Outcomes) -> tuple[int, ...]:
    """The samples' shape before the events' axes, the same at every site."""
    shapes = {}
    for name, listed in _sites(outcomes).items():
        event, shape = tuple(listed.shape[1:]), tuple(_sites(sampled)[name].shape)
        axes = len(shape) - len(event)
        if axes < 0 or shape[axes:] != event:
            at = f" of site {name!r}" if name else ""
            raise ValueError(
                f"outcomes{at} of shape {shape} do not end in this space's event shape {event}"
            )
        shapes[name] = shape[:axes]
    if len(set(shapes.values())) > 1:
        raise ValueError(f"the sites have outcomes of different leading shapes, {shapes}")
    return next(iter(shapes.values()))


def _rows(outcomes: Outcomes, leading: int) -> np.ndarray:
    """Flatten outcomes of any library to a NumPy matrix: leading axes by events."""
    columns = [_matrix(values, leading) for _, values in sorted(_sites(outcomes).items())]
    return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)


def _matrix(values: Array, leading: int) -> np.ndarray:
    values = np.asarray(values.detach().cpu() if is_torch_array(values) else values)
    shape = values.shape
    return values.reshape(math.prod(shape[:leading]), math.prod(shape[leading:]))
