r"""Sequence models as edges, and dynamic programs over (state, partial reward).

An edge leads from a state to a state, emits a token, has a log-probability, and adds an integer
code to the reward: sums of codes tie exactly if rewards do. Independent letters are loops at one
state.

The policy that reweights the prior by h(total reward) is autoregressive too, the h-transform

.. math:: π(y_t | y_{<t}) = p(y_t | y_{<t})\, \frac{V_t(i', s + r)}{V_{t-1}(i, s)}, \qquad
          V_t(i, s) = E[h(\text{total}) | \text{state } i, \text{ partial reward } s].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True, eq=False)
class Edges:
    """A model of sequences of a fixed length; arrays over the first and over all later edges.

    Parameters
    ----------
    states, tokens, length : int
        Numbers of states, of tokens, and of positions.
    first : tuple of arrays
        ``(target, token, log_p, code)`` of the edges that emit the first token.
    later : tuple of arrays
        ``(source, target, token, log_p, code)`` of all others.
    log_final : array, shape (states,)
        Log-weight of ending in each state.
    """

    states: int
    tokens: int
    length: int
    first: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    later: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    log_final: np.ndarray

    def forward(self, most: float | int = math.inf) -> list[tuple[np.ndarray, np.ndarray]]:
        """For every position, the partial rewards' codes (n,) and log-probabilities (states, n).

        Raises
        ------
        ValueError
            If there are more than ``most`` partial rewards, over all positions and states.
        """
        target, _, log_p, code = self.first
        keys = np.unique(code)
        out = [(keys, _scatter(self.states, target, np.searchsorted(keys, code), log_p, len(keys)))]
        source, target, _, log_p, code = self.later
        for _ in range(self.length - 1):
            old, before = out[-1]
            moved = np.add.outer(code, old)
            keys = np.unique(moved)
            if self.states * (len(keys) + sum(len(k) for k, _ in out)) > most:
                raise ValueError(
                    f"there are over {most:,.0f} pairs of a state and a partial reward; round the "
                    "rewards to a coarser lattice, or shorten the sequence"
                )
            column = np.searchsorted(keys, moved)
            log_prob = before[source] + log_p[:, None]
            rows = np.broadcast_to(target[:, None], column.shape)
            out.append((keys, _scatter(self.states, rows, column, log_prob, len(keys))))
        return out

    def level_mean(self, values: np.ndarray) -> np.ndarray:
        """E[Σ_t values[token_t] | total reward], over the codes of the last position, shape (n,).

        Parameters
        ----------
        values : array, shape (tokens,)
        """
        laws = self.forward()
        target, token, log_p, code = self.first
        keys, log_prob = laws[0]
        mean = _spread(log_prob, target, np.searchsorted(keys, code), log_p, values[token])
        source, target, token, log_p, code = self.later
        for (old, before), (keys, log_prob) in pairwise(laws):
            column = np.searchsorted(keys, np.add.outer(code, old))
            rows = np.broadcast_to(target[:, None], column.shape)
            moved = mean[source] + values[token][:, None]
            mean = _spread(log_prob, rows, column, before[source] + log_p[:, None], moved)
        log_end = laws[-1][1] + self.log_final[:, None]
        log_total = np.logaddexp.reduce(log_end, axis=0)
        weights = np.exp(log_end - np.where(log_total > -math.inf, log_total, 0.0))
        return (weights * mean).sum(axis=0)


def _spread(
    log_total: np.ndarray,
    row: np.ndarray,
    column: np.ndarray,
    log_p: np.ndarray,
    values: np.ndarray,
) -> np.ndarray:
    """Mean of values by (row, column), weighted by exp(log_p − log_total)."""
    possible = log_p > -math.inf
    reference = np.where(possible, log_total[row, column], 0.0)
    weights = np.where(possible, np.exp(log_p - reference), 0.0) * values
    flat = (row * log_total.shape[1] + column).ravel()
    size = log_total.size
    return np.bincount(flat, weights=weights.ravel(), minlength=size).reshape(log_total.shape)


def _scatter(
    states: int, row: np.ndarray, column: np.ndarray, log_p: np.ndarray, columns: int
) -> np.ndarray:
    """logsumexp of entries by (row, column), shape (states, columns)."""
    flat = (row * columns + column).ravel()
    log_p = np.broadcast_to(log_p, row.shape).ravel()
    top = np.full(states * columns, -math.inf)
    np.maximum.at(top, flat, log_p)
    finite = np.where(top > -math.inf, top, 0.0)
    mass = np.bincount(flat, weights=np.exp(log_p - finite[flat]), minlength=states * columns)
    with np.errstate(divide="ignore"):
        return (np.log(mass) + finite).reshape(states, columns)


class Autoregressive:
    """A reweighting of a prior by its total reward, one token after the other.

    Made by `autoregressive`.

    Parameters
    ----------
    edges : Edges
        The prior.
    codes : array of int, shape (L,)
        Of the levels of the reward.
    log_ratio : array, shape (L,)
        log B/P of the levels.
    """

    def __init__(self, edges: Edges, codes: np.ndarray, log_ratio: np.ndarray):
        self.edges = edges
        source, target, _, log_p, code = edges.later
        self._keys = [keys for keys, _ in edges.forward(20_000_000)]
        order = np.argsort(codes)
        place = np.searchsorted(codes[order], self._keys[-1]).clip(0, len(codes) - 1)
        known = codes[order][place] == self._keys[-1]
        last = np.where(known, log_ratio[order][place], -math.inf)
        values = [last + edges.log_final[:, None]]
        for keys, following in zip(self._keys[-2::-1], self._keys[:0:-1], strict=True):
            column = np.searchsorted(following, np.add.outer(code, keys))
            log_prob = log_p[:, None] + values[-1][target[:, None], column]
            rows = np.broadcast_to(source[:, None], column.shape)
            here = np.broadcast_to(np.arange(len(keys)), column.shape)
            values.append(_scatter(edges.states, rows, here, log_prob, len(keys)))
        self._values = values[::-1]

    def next_log_prob(self, prefix: Sequence[int] = ()) -> np.ndarray:
        """Log-probabilities of the next token after a prefix, shape (tokens,).

        Parameters
        ----------
        prefix : sequence of int
            The tokens so far, fewer than the length.

        Raises
        ------
        ValueError
            For a prefix that is too long, or has probability 0.
        """
        log_joint = self._log_joint(prefix)
        total = np.logaddexp.reduce(log_joint)
        if total == -math.inf:
            raise ValueError(f"the prefix {list(prefix)} has probability 0 under this policy")
        return log_joint - total

    def log_prob(self, tokens: Sequence[int]) -> float:
        """Log-probability of a sequence: the sum over its tokens.

        Parameters
        ----------
        tokens : sequence of int
            As many as the length.
        """
        if len(tokens) != self.edges.length:
            raise ValueError(f"a sequence has {self.edges.length} tokens, got {len(tokens)}")
        if outside := [token for token in tokens if not 0 <= token < self.edges.tokens]:
            raise ValueError(f"tokens are 0..{self.edges.tokens - 1}, got {outside[0]}")
        total = 0.0
        for t, token in enumerate(tokens):
            log_joint = self._log_joint(tokens[:t])
            step = log_joint[token] - np.logaddexp.reduce(log_joint)
            if not step > -math.inf:
                return -math.inf
            total += float(step)
        return total

    def sample(self, rng: np.random.Generator) -> list[int]:
        """One sequence, drawn token by token.

        Parameters
        ----------
        rng : numpy.random.Generator
        """
        tokens: list[int] = []
        for _ in range(self.edges.length):
            probs = np.exp(self.next_log_prob(tokens))
            tokens.append(int(rng.choice(len(probs), p=probs / probs.sum())))
        return tokens

    def _log_joint(self, prefix: Sequence[int]) -> np.ndarray:
        """log of p(prefix's states, next token)·V, up to a constant, shape (tokens,)."""
        if len(prefix) >= self.edges.length:
            raise ValueError(
                f"a prefix has fewer than the {self.edges.length} tokens of a sequence, got "
                f"{len(prefix)}"
            )
        total, (target, token, log_p, code) = 0, self.edges.first
        for t, letter in enumerate(prefix):
            live = np.flatnonzero((token == letter) & (log_p > -math.inf))
            if len(live) and (code[live] != code[live[0]]).any():
                raise ValueError(
                    f"token {letter} after {list(prefix[:t])} adds different rewards from "
                    "different states; the reward must be a function of the tokens"
                )
            total = total + code[live[0]] if len(live) else total
            log_state = _scatter(1, 0 * live, target[live], log_p[live], self.edges.states)[0]
            source, target, token, log_p, code = self.edges.later
            log_p = log_p + log_state[source]
        keys, values = self._keys[len(prefix)], self._values[len(prefix)]
        column = np.searchsorted(keys, total + code).clip(0, len(keys) - 1)
        log_joint = np.where(
            keys[column] == total + code, log_p + values[target, column], -math.inf
        )
        return _scatter(1, 0 * token, token, log_joint, self.edges.tokens)[0]


def memoryless_edges(log_p: np.ndarray, codes: Sequence[int], length: int) -> Edges:
    """Independent tokens: loops at a single state.

    Parameters
    ----------
    log_p : array, shape (tokens,)
        −inf is ordinary.
    codes : sequence of int, shape (tokens,)
    length : int
    """
    tokens = np.arange(len(log_p))
    zero = np.zeros(len(log_p), dtype=np.int64)
    code = whole_numbers(codes, length)
    return Edges(
        1, len(log_p), length, (zero, tokens, log_p, code), (zero, zero, tokens, log_p, code),
        np.zeros(1),
    )  # fmt: skip


def whole_numbers(numbers: Sequence[int], terms: int) -> np.ndarray:
    """Integers as int64, or as Python's where sums of so many of them might not fit."""
    fits = terms * max((abs(n) for n in numbers), default=0) < 2**62
    return np.array(numbers, dtype=np.int64 if fits else object)
