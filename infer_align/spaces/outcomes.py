"""Lists of outcomes as NumPy integers: making them, checking them, finding one in them."""

import math

import numpy as np
from array_api_compat import is_torch_array

from infer_align._arguments import array
from infer_align._numerics import Array


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


def check_distinct(outcomes: Array) -> None:
    """Refuse an empty list of outcomes, or one that lists an outcome twice."""
    array("outcomes", outcomes, need="an array, one outcome a row")
    if not outcomes.shape or outcomes.shape[0] == 0:
        raise ValueError(
            f"a space needs at least one outcome on axis 0, got shape {tuple(outcomes.shape)}"
        )
    values, counts = np.unique(_rows(outcomes, 1), axis=0, return_counts=True)
    if counts.max() > 1:
        raise ValueError(
            f"outcome {values[np.argmax(counts)].tolist()} is listed {counts.max()} times; "
            "list every outcome once, or its probability counts more than once"
        )


def positions(sampled: Array, outcomes: Array) -> np.ndarray:
    """Index into ``outcomes`` of each sampled outcome, of the samples' leading shape."""
    event = tuple(outcomes.shape[1:])
    leading = len(sampled.shape) - len(event)
    shape = tuple(sampled.shape[: max(leading, 0)])
    if leading < 0 or tuple(sampled.shape[leading:]) != event:
        raise ValueError(
            f"outcomes of shape {tuple(sampled.shape)} do not end in this space's event shape "
            f"{event}"
        )
    known, wanted = _rows(outcomes, 1), _rows(sampled, leading)
    _, labels = np.unique(np.concatenate([known, wanted]), axis=0, return_inverse=True)
    labels = labels.reshape(-1)
    position = np.full(labels.max() + 1, -1)
    position[labels[: len(known)]] = np.arange(len(known))
    found = position[labels[len(known) :]]
    if (unknown := found < 0).any():
        raise ValueError(
            f"{unknown.sum()} of {len(found)} outcomes are not in this space, the first: "
            f"{wanted[np.argmax(unknown)].tolist()}"
        )
    return found.reshape(shape)


def _rows(array: Array, leading: int) -> np.ndarray:
    """Flatten the array of any library to a NumPy matrix: leading axes by event."""
    array = np.asarray(array.detach().cpu() if is_torch_array(array) else array)
    shape = array.shape
    return array.reshape(math.prod(shape[:leading]), math.prod(shape[leading:]))
