"""Finite automata over tokens: constraints with a memory, which chains multiply in exactly."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from infer_align._numerics import Array, concrete, namespace


@dataclass(frozen=True, eq=False)
class Automaton:
    """A deterministic finite automaton over tokens, which accepts or rejects sequences.

    Called on sequences it is a log-potential, 0 or −inf: a factor of a program or of a
    ``product``. `Chain.constrain` multiplies it into a Markov model exactly.

    Parameters
    ----------
    transitions : array of int, shape (Q, tokens)
        The next state from each state, by each token. Negative tokens are padding, which changes no
        state.
    accepting : sequence of Q bools
        Which states a sequence may end in.
    start : int
        State before the first token.

    Raises
    ------
    ValueError
        For a state or a token that does not exist.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.exact import Automaton
    >>> some_one = Automaton([[0, 1], [1, 1]], [False, True])  # a 1 occurs
    >>> some_one(np.array([[0, 0, 0], [0, 1, 0]])).tolist()
    [-inf, 0.0]
    """

    transitions: Any
    accepting: Any
    start: int = 0

    def __post_init__(self) -> None:
        table, accepting = np.asarray(self.transitions), np.asarray(self.accepting, dtype=bool)
        if table.ndim != 2 or accepting.shape != (len(table),) or not 0 <= self.start < len(table):
            raise ValueError(
                f"an automaton of {len(table)} states needs transitions of shape (states, tokens), "
                f"a bool for each state and a start among them; got shapes {table.shape} and "
                f"{accepting.shape}, start {self.start}"
            )
        if table.size and not 0 <= table.min() <= table.max() < len(table):
            raise ValueError(
                f"transitions lead to states 0..{len(table) - 1}, got {table.tolist()}"
            )
        if not np.array_equal(table, table.astype(np.int64)):
            raise ValueError(f"transitions lead to whole states, got {table.tolist()}")
        object.__setattr__(self, "transitions", table.astype(np.int64))
        object.__setattr__(self, "accepting", accepting)

    def by_token(self, tokens: np.ndarray) -> np.ndarray:
        """The next state from each state, by each of the tokens listed, shape (Q, n).

        Raises
        ------
        ValueError
            If a token has no column.
        """
        self._check_tokens(tokens)
        return self._with_padding()[:, np.maximum(tokens, -1)]

    def _check_tokens(self, tokens: np.ndarray) -> None:
        known = self.transitions.shape[1]
        if tokens.max(initial=-1) >= known:
            raise ValueError(
                f"the automaton knows tokens 0..{known - 1}, got token {tokens.max()}; give it a "
                "column for each"
            )

    def _with_padding(self) -> np.ndarray:
        """The table with a last column, for padding: shape (Q, tokens + 1)."""
        stays = np.arange(len(self.transitions))[:, None]
        return np.concatenate([self.transitions, stays], axis=1)

    def accepts(self, y: Array) -> Array:
        """Whether each sequence ends in an accepting state, shape (...).

        Parameters
        ----------
        y : array of int, shape (..., m)

        Raises
        ------
        ValueError
            If a token has no column.
        """
        xp = namespace(y)
        if (known := concrete(y)) is not None:
            self._check_tokens(known)
        table = self._with_padding()
        columns = table.shape[1]
        y = xp.where(y < 0, columns - 1, y)
        table = xp.asarray(table.ravel())
        state = xp.zeros_like(y[..., 0]) + self.start
        for t in range(y.shape[-1]):
            flat = xp.reshape(state * columns + y[..., t], (-1,))
            state = xp.reshape(xp.take(table, flat, axis=0), state.shape)
        ends = xp.take(xp.asarray(self.accepting), xp.reshape(state, (-1,)), axis=0)
        return xp.reshape(ends, state.shape)

    def __call__(self, y: Array, *contexts: Any) -> Array:
        """Log-potential of each sequence: 0 where accepted, −inf elsewhere."""
        accepted = self.accepts(y)
        xp = namespace(accepted)
        zero = xp.zeros(accepted.shape)
        return xp.where(accepted, zero, zero - math.inf)
