r"""Reading the terms of a potential off its values, and checking that they add up to it.

Let :math:`s(t, a)` be a sequence with letter a at position t, and :math:`s(t-1, u) | s(t, v)` the
beginning of the one and the end of the other. Every potential that is a sum over neighbouring pairs
is

.. math:: φ(y) = φ(s(0, y_0)) + \sum_{t>0} [φ(s(t-1, y_{t-1}) | s(t, y_t)) - φ(s(t-1, y_{t-1}))],

for what the beginnings and the ends add cancels. Where a bracket has no accepted first term there
is nothing to read. Sums over positions are the case of one sequence but for a single change.
"""

import math
from typing import NamedTuple

import numpy as np

from infer_align._numerics import Array, concrete, namespace
from infer_align.exact._problem import Problem, Unfit
from infer_align.exact._surroundings import after_end, ended, reference, surroundings, values

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
    base = reference(problem)
    at, letter = (x.ravel() for x in np.indices((m, k)))
    tokens = np.tile(base, (m * k, 1))
    tokens[np.arange(m * k), at] = letter
    xp = namespace(problem.like)
    log_base = values(problem, base[None])[0]
    terms = xp.reshape(values(problem, tokens), (m, k)) - log_base
    # What the whole reference has is no position's own: the first one carries it.
    terms = terms + xp.where(xp.arange(m) == 0, log_base, 0.0 * log_base)[:, None]
    possible = _known(terms) > -math.inf
    pairs = np.broadcast_to(possible[1:, None, :], (m - 1, k, k))
    check = np.concatenate([check_sequences(problem), _walks(possible[0], pairs)])
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
    k, m = model.vocabulary_size, model.length
    around = surroundings(problem)
    here = xp.reshape(values(problem, around.reshape(-1, m)), (m, k))
    first, edges = here[0], here[1:, :, None] + here[1:, None, :]  # none, if m is 1
    if m > 1:
        pairs = np.empty((m - 1, k, k, m), dtype=around.dtype)
        for t in range(1, m):
            pairs[t - 1, :, :, :t] = around[t - 1, :, None, :t]
            pairs[t - 1, :, :, t:] = around[t, None, :, t:]
        both = values(problem, ended(problem, pairs.reshape(-1, m)))
        both, before = xp.reshape(both, (m - 1, k, k)), here[:-1, :, None]
        possible = before > -math.inf
        edges = xp.where(possible, both - xp.where(possible, before, 0.0), -math.inf)
    walks = ended(problem, _walks(_known(first) > -math.inf, _known(edges) > -math.inf))
    if model.eos:
        first, edges = _with_end(first, edges)
    check = np.concatenate([check_sequences(problem), walks])
    states = np.where(after_end(problem, check), k, check)
    predicted = xp.take(first, xp.asarray(states[:, 0]), axis=0)
    size = first.shape[0]
    for t in range(1, m):
        flat = xp.reshape(edges[t - 1], (-1,))
        index = states[:, t - 1] * size + states[:, t]
        predicted = predicted + xp.take(flat, xp.asarray(index), axis=0)
    _compare(problem, check, predicted, "a sum over neighbouring pairs")
    return Terms(first, edges, len(check))


def _known(x: Array) -> np.ndarray:
    known = concrete(x)
    if known is None:
        raise Unfit("the potential's values are not known inside jax.jit")
    return np.asarray(known)


def _with_end(first: Array, edges: Array) -> tuple[Array, Array]:
    """One state more, "ended": reached after an EOS and never left, at no further potential."""
    xp = namespace(first)
    m, k = edges.shape[0], first.shape[0]
    first = xp.concat([first, xp.full_like(first[:1], -math.inf)])
    edges = xp.concat([edges, xp.zeros_like(edges[:, :, :1])], axis=2)
    bottom = xp.zeros_like(edges[:, :1, :])
    return first, xp.reshape(xp.concat([edges, bottom], axis=1), (m, k + 1, k + 1))


def _walks(first: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Random paths through what is possible, shape (n, m): few others may be accepted."""
    m, size = len(edges) + 1, len(first)
    alive = np.ones((m, size), dtype=bool)
    for t in range(m - 2, -1, -1):
        alive[t] = (edges[t] & alive[t + 1]).any(axis=1)
    if not (first & alive[0]).any():
        return np.empty((0, m), dtype=int)
    rng = np.random.default_rng(0)
    draw = lambda may: np.argmax(rng.random((CHECKS, size)) * may, axis=1)
    paths = [draw(first & alive[0])]
    for t in range(1, m):
        paths.append(draw(edges[t - 1, paths[-1]] & alive[t]))
    return np.stack(paths, axis=1)


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
    return ended(problem, np.concatenate(rows))


def _compare(problem: Problem, tokens: np.ndarray, predicted: Array, form: str) -> None:
    actual = values(problem, tokens)
    same = problem.agree(predicted, actual)
    if same.all():
        return
    i = int(np.argmin(same))
    found = f"of {shown(tokens[i])} it is {float(actual[i]):.6g}"
    if float(predicted[i]) == -math.inf:
        raise Unfit(
            f"the potential's terms cannot be read off its values: {found}, and no accepted "
            "sequence was found that shows each of its terms; multiply an exact.Automaton into the "
            "target, or an exact.Chain"
        )
    raise Unfit(
        f"the potential is not {form}: {found}, and the terms that single changes show add up to "
        f"{float(predicted[i]):.6g}"
    )


def shown(tokens: np.ndarray) -> str:
    """A sequence, or its beginning and end."""
    listed = [str(token) for token in tokens.tolist()]
    if len(listed) > 14:
        listed = [*listed[:7], "…", *listed[-6:]]
    return f"[{', '.join(listed)}]"
