r"""Which part of an enumerable target a policy reaches, against what could be expected.

n draws of the target itself do not reach all of it, so a coverage means little alone: it is held
against that of n draws of p. Both are exact sums,

.. math:: E[\text{mass}] = \sum_y p(y) [1 - (1 - π(y))^n], \qquad
          E[\text{modes}] = \frac1K \sum_k [1 - (1 - π(M_k))^n].
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from infer_align._arguments import array, count
from infer_align._numerics import Array
from infer_align.diagnostics._draws import numpy

MODE_MASS = 0.9


class Coverage(NamedTuple):
    """What n draws reach of an enumerable target.

    Examples
    --------
    >>> from infer_align.diagnostics import Coverage
    >>> Coverage(0.5, 0.25, 0.9, 1.0, n_modes=4, n=100).mass
    0.5
    """

    mass: Any
    """Target probability of the outcomes that were drawn."""
    modes: Any
    """Share of the target's modes of which an outcome was drawn."""
    mass_of_target: Any
    """Expected ``mass`` of as many draws of the target itself."""
    modes_of_target: Any
    """Expected ``modes`` of as many draws of the target itself."""
    n_modes: Any
    """How many modes the target has."""
    n: int
    """Number of draws."""


def mode_coverage(
    log_target: Float[Any, "N *contexts"],
    drawn: Int[Any, "n *contexts"],
    *,
    modes: Array | None = None,
) -> Coverage:
    """Mass and modes of an exactly known target that some draws cover.

    Parameters
    ----------
    log_target : array, shape (N, *contexts)
        Normalised log p of every outcome: ``space.log_target(target)``.
    drawn : array of int, shape (n, *contexts)
        Positions of the draws in that list: ``space.index(y)``.
    modes : array of int, shape (N,), optional
        Number of the mode that each outcome belongs to, −1 for none. Default: the fewest outcomes
        that hold 90% of p are a mode each.

    Returns
    -------
    Coverage
        Its fields but ``n`` have shape (*contexts).

    Raises
    ------
    ValueError
        If p does not sum to one, or a position is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.diagnostics import mode_coverage
    >>> found = mode_coverage(np.log([0.5, 0.3, 0.2]), np.array([0, 0, 1]))
    >>> round(float(found.mass), 6), round(float(found.modes), 6), int(found.n_modes)
    (0.8, 0.666667, 3)
    """
    p = _probabilities(log_target, "target")
    array("drawn", drawn, need="an array of positions, (n, *contexts)")
    drawn = np.asarray(drawn).reshape(len(drawn), -1)
    if drawn.dtype.kind not in "iu":
        raise ValueError(f"drawn holds positions, integers, got {drawn.dtype}: space.index(draws)")
    if drawn.size and not (0 <= drawn.min() and drawn.max() < len(p)):
        raise ValueError(
            f"positions of draws must lie in 0 to {len(p) - 1}, got {drawn.min()} to "
            f"{drawn.max()}: take space.index(draws) of the space that log_target lists"
        )
    hit = np.zeros(p.shape)
    np.put_along_axis(hit, drawn, 1.0, axis=0)
    labels = _labels(p, modes)
    reached = np.minimum(_per_mode(labels, hit), 1.0)
    return _coverage(p, labels, hit, reached, len(drawn), log_target)


def expected_coverage(
    log_target: Float[Any, "N *contexts"],
    log_policy: Array,
    n: int,
    *,
    modes: Array | None = None,
) -> Coverage:
    """Mass and modes of a target that n draws of an enumerated policy cover in expectation.

    Parameters
    ----------
    log_target, log_policy : array, shape (N, *contexts)
        Normalised log-probabilities of every outcome.
    n : int
        Draws; ``inf`` tells what the policy can reach at all.
    modes : array of int, shape (N,), optional
        As for `mode_coverage`.

    Returns
    -------
    Coverage

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.diagnostics import expected_coverage
    >>> log_p, log_policy = np.log([0.5, 0.5]), np.log([0.9, 0.1])
    >>> found = expected_coverage(log_p, log_policy, 2)  # 1 − (0.01 + 0.81)/2, and 1 − 0.25
    >>> round(float(found.mass), 6), round(float(found.mass_of_target), 6)
    (0.59, 0.75)
    """
    n = n if isinstance(n, float) and n == math.inf else count("n", n)
    p, policy = _probabilities(log_target, "target"), _probabilities(log_policy, "policy")
    if p.shape != policy.shape:
        raise ValueError(
            f"log_target has shape {tuple(log_target.shape)} and log_policy "
            f"{tuple(log_policy.shape)}; list both over the same outcomes and contexts"
        )
    labels = _labels(p, modes)
    reached = _reached(_per_mode(labels, policy), n)
    return _coverage(p, labels, _reached(policy, n), reached, n, log_target)


def _coverage(
    p: np.ndarray, labels: np.ndarray, hit: np.ndarray, by_mode: np.ndarray, n: int, like: Array
) -> Coverage:
    shape = tuple(like.shape[1:])
    exists = _per_mode(labels, np.ones(p.shape)) > 0
    modes = exists.sum(axis=0)
    share = lambda x: np.where(exists, x, 0.0).sum(axis=0) / modes
    shaped = lambda column: column.reshape(shape)[()]
    return Coverage(
        mass=shaped((p * hit).sum(axis=0)),
        modes=shaped(share(by_mode)),
        mass_of_target=shaped((p * _reached(p, n)).sum(axis=0)),
        modes_of_target=shaped(share(_reached(_per_mode(labels, p), n))),
        n_modes=shaped(modes),
        n=n,
    )


def _probabilities(log_prob: Array, name: str) -> np.ndarray:
    """Probabilities (N, contexts), which must sum to one."""
    array(f"log_{name}", log_prob, need="an array of log-probabilities, (N, *contexts)")
    values = numpy(log_prob)
    p = np.exp(values.reshape(len(values), -1))
    if not np.allclose(p.sum(axis=0), 1.0, atol=1e-4):
        raise ValueError(
            f"the {name}'s probabilities sum to {p.sum(axis=0).round(4).tolist()}, not to 1: give "
            "normalised log-probabilities of all outcomes, as space.log_target does"
        )
    return p


def _labels(p: np.ndarray, modes: Array | None) -> np.ndarray:
    """Number of the mode of each outcome, −1 for none: (N, contexts)."""
    if modes is None:
        order = np.argsort(-p, axis=0, kind="stable")
        mass = np.cumsum(np.take_along_axis(p, order, axis=0), axis=0)
        before = np.vstack([np.zeros((1, p.shape[1])), mass[:-1]])
        labels = np.where(before < MODE_MASS - 1e-12, order, -1)
        out = np.empty_like(labels)
        np.put_along_axis(out, order, labels, axis=0)
        return out
    given = np.asarray(modes)
    if given.shape != (len(p),):
        raise ValueError(
            f"modes has shape {given.shape}; give one number an outcome, shape ({len(p)},)"
        )
    if not (given >= 0).any():
        raise ValueError("modes assigns no outcome to a mode: all its numbers are negative")
    numbers = np.unique(given[given >= 0])
    one = np.where(given >= 0, np.searchsorted(numbers, given), -1)
    return np.repeat(one[:, None], p.shape[1], axis=1)


def _per_mode(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sum of values (N, contexts) over each mode: (K, contexts)."""
    out = np.zeros((labels.max() + 1, labels.shape[1]))
    outcome, context = np.nonzero(labels >= 0)
    np.add.at(out, (labels[outcome, context], context), values[outcome, context])
    return out


def _reached(p: np.ndarray, n: int) -> np.ndarray:
    """1 − (1 − p)^n, to full precision for small p."""
    inside = np.clip(p, 0.0, 1.0)
    with np.errstate(divide="ignore"):
        return -np.expm1(n * np.log1p(-inside)) if math.isfinite(n) else (inside > 0) * 1.0
