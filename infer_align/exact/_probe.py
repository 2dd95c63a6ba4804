r"""Reading the terms of a potential off its values, and checking that they add up to it.

With a reference letter a, and y^{(t)} the first t tokens of y followed by a's, every potential is

.. math:: φ(y) = φ(a…a) + \sum_t [φ(y^{(t)}) - φ(y^{(t-1)})],

and if it is a sum over neighbouring pairs, the t-th difference depends on y_{t−1} and y_t alone:
two sequences give it, whatever came before. Sums over positions are the case without y_{t−1}.
"""

import math
from typing import NamedTuple

import numpy as np

from infer_align._numerics import Array, concrete, namespace
from infer_align.exact._problem import Problem, Unfit

CHECKS = 512
"""Random sequences that the sum of the terms is compared on, beside the regular ones."""


class Terms(NamedTuple):
    """A potential as a sum over positions, or over neighbouring pairs."""

    first: Array
    """Shape (S,): of the first token; of every position, shape (m, k), without ``edges``."""
    edges: Array | None
    """Shape (m − 1, S, S). S = k, and one more for "ended" where sequences may end."""
    checked: int
    """Sequences that the sum was compared on."""


def position_terms(problem: Problem) -> Terms:
    """Terms of a potential that is a sum over positions, shape (m, k).

    Raises
    ------
    Unfit
        If it is none, with a sequence that shows it.
    """
    k, m = problem.model.vocabulary_size, problem.model.length
    reference, log_reference = _reference(problem)
    tokens = np.full((m * k, m), reference)
    position, letter = np.divmod(np.arange(m * k), k)
    tokens[np.arange(m * k), position] = letter
    xp = namespace(problem.like)
    terms = xp.reshape(_values(problem, tokens), (m, k)) - log_reference
    # φ(a…a) is no position's own: the first one carries it.
    first = xp.where(xp.arange(m) == 0, log_reference, 0.0 * log_reference)
    terms = terms + first[:, None]
    check = check_sequences(problem)
    predicted = sum(xp.take(terms[t], xp.asarray(check[:, t]), axis=0) for t in range(m))
    _compare(problem, check, predicted, "a sum over positions")
    return Terms(terms, None, len(check))


def pair_terms(problem: Problem) -> Terms:
    """Terms of a potential that is a sum over neighbouring pairs.

    Raises
    ------
    Unfit
        If it is none, with a sequence that shows it.
    """
    model, xp = problem.model, namespace(problem.like)
    k, m, ends = model.vocabulary_size, model.length, np.array(model.eos, dtype=int)
    reference, _ = _reference(problem)
    alone = np.full((m, k, m), reference)
    for t in range(m):
        alone[t, :, t] = np.arange(k)
    here = xp.reshape(_values(problem, _ended(problem, alone.reshape(-1, m))), (m, k))
    first, edges = here[0], here[1:, :, None] + here[1:, None, :]  # none, if m is 1
    if m > 1:
        pairs = np.full((m - 1, k, k, m), reference)
        for t in range(1, m):
            pairs[t - 1, :, :, t - 1] = np.arange(k)[:, None]
            pairs[t - 1, :, :, t] = np.arange(k)[None, :]
        after = _values(problem, _ended(problem, pairs.reshape(-1, m)))
        after = xp.reshape(after, (m - 1, k, k))
        before = here[:-1, :, None]
        possible = before > -math.inf
        edges = xp.where(possible, after - xp.where(possible, before, 0.0), -math.inf)
    if len(ends):
        first, edges = _with_end(first, edges, ends)
    check = check_sequences(problem)
    states = _states(problem, check)
    predicted = xp.take(first, xp.asarray(states[:, 0]), axis=0)
    size = first.shape[0]
    for t in range(1, m):
        flat = xp.reshape(edges[t - 1], (-1,))
        index = states[:, t - 1] * size + states[:, t]
        predicted = predicted + xp.take(flat, xp.asarray(index), axis=0)
    _compare(problem, check, predicted, "a sum over neighbouring pairs")
    return Terms(first, edges, len(check))


def _values(problem: Problem, tokens: np.ndarray) -> Array:
    """The potential that is not known as an automaton."""
    return problem.potential(tokens, automata=False)


def _with_end(first: Array, edges: Array, ends: np.ndarray) -> tuple[Array, Array]:
    """One state more, "ended": reached after an EOS and never left, at no further potential."""
    xp = namespace(first)
    m, k = edges.shape[0], first.shape[0]
    first = xp.concat([first, xp.full_like(first[:1], -math.inf)])
    edges = xp.concat([edges, xp.zeros_like(edges[:, :, :1])], axis=2)
    bottom = xp.zeros_like(edges[:, :1, :])
    return first, xp.reshape(xp.concat([edges, bottom], axis=1), (m, k + 1, k + 1))


def _states(problem: Problem, tokens: np.ndarray) -> np.ndarray:
    """States of sequences: their tokens, and k after an EOS."""
    ended = _after_end(problem, tokens)
    return np.where(ended, problem.model.vocabulary_size, tokens)


def _after_end(problem: Problem, tokens: np.ndarray) -> np.ndarray:
    end = np.isin(tokens, problem.model.eos)
    return np.cumsum(end, axis=1) - end > 0


def _ended(problem: Problem, tokens: np.ndarray) -> np.ndarray:
    """The same sequences, padded after their first EOS."""
    return np.where(_after_end(problem, tokens), problem.model.pad, tokens)


def _reference(problem: Problem) -> tuple[int, Array]:
    """A letter that may be repeated to the end, and the potential of that."""
    k, m, ends = problem.model.vocabulary_size, problem.model.length, problem.model.eos
    letters = [a for a in range(k) if a not in ends]
    constant = np.repeat(np.array(letters)[:, None], m, axis=1)
    values = _values(problem, constant)
    known = concrete(values)
    if known is None:
        raise Unfit("the potential's values are not known inside jax.jit")
    accepted = np.flatnonzero(np.isfinite(known))
    if not len(accepted):
        raise Unfit(
            "the potential rejects every sequence of one letter repeated, so its terms cannot be "
            "read off; multiply an exact.Automaton into an exact.Chain"
        )
    return letters[accepted[0]], values[int(accepted[0])]


def check_sequences(problem: Problem) -> np.ndarray:
    """Sequences to compare on: random ones, with runs, with few letters, with many of one."""
    k, m = problem.model.vocabulary_size, problem.model.length
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, k, (CHECKS, m))]
    for a in range(min(k, 32)):
        share = np.linspace(0, 1, 16)[:, None]
        rows.append(np.where(rng.random((16, m)) < share, a, rng.integers(0, k, (16, m))))
        prefix = np.arange(m)[None, :] < np.linspace(0, m, 16)[:, None]
        rows.append(np.where(prefix, a, rng.integers(0, k, (16, 1))))
        period = 1 + np.arange(8)[:, None]
        rows.append((a + np.arange(m)[None, :] // period) % k)
    return _ended(problem, np.concatenate(rows))


def _compare(problem: Problem, tokens: np.ndarray, predicted: Array, form: str) -> None:
    actual = _values(problem, tokens)
    same = problem.agree(predicted, actual)
    if not same.all():
        i = int(np.argmin(same))
        raise Unfit(
            f"the potential is not {form}: of {shown(tokens[i])} it is {float(actual[i]):.6g}, and "
            f"the terms that single changes show add up to {float(predicted[i]):.6g}"
        )


def shown(tokens: np.ndarray) -> str:
    """A sequence, or its beginning and end."""
    listed = [str(token) for token in tokens.tolist()]
    if len(listed) > 14:
        listed = [*listed[:7], "…", *listed[-6:]]
    return f"[{', '.join(listed)}]"
