"""Rules for the log-partition function log Z = log E_q[P/q] of an unnormalised target.

All but `known_log_z` estimate it from importance weights, per context, over axis 0. An Ẑ that
does not contain the outcome it is used for (leave-one-out, or earlier steps only) gives the exact
gradient at that Ẑ; for power families (the KLs, χ², Hellinger, α) that is the right gradient up
to a positive scale, so only JS and TV need Ẑ for the direction.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from array_api_compat import is_array_api_obj
from jaxtyping import Float

from infer_align._arguments import count as count_of
from infer_align._arguments import positive
from infer_align._numerics import Array, beside, concrete, logmeanexp, logsumexp, namespace
from infer_align.estimators._baselines import _decay
from infer_align.estimators._weights import LogWeights

State = dict[str, Any]
INF = math.inf
_NO_ID = -1
_PER_CONTEXT = "for prompts that change between steps use per_context_log_z(number of prompts)"
_ONE_EACH = "array with one number a context"


class LogZ(NamedTuple):
    """A log-Z rule: ``init() -> state`` and ``update(state, weights) -> (log_z, state)``.

    ``log_z`` has shape (n or 1, *contexts), and is −inf where no outcome was accepted.
    """

    init: Callable[[], State]
    update: Callable[[State, LogWeights], tuple[Array, State]]
    name: str
    value: Any = None
    known: bool = False
    learnt: bool = False
    independent: bool = True
    min_outcomes: int = 1

    def __repr__(self) -> str:
        return self.name


def known_log_z(value: float | Float[Any, "*contexts"]) -> LogZ:
    """A log Z known beforehand: one number, or one per context (in the order of the contexts).

    Parameters
    ----------
    value : float or array, shape (*contexts)
        Finite, in nats. Of several, each column of a batch takes the one at its
        ``LogWeights.context``; without ids the columns must be the contexts, in that order.

    Raises
    ------
    ValueError
        For a value that is not finite; at an update, for a context that it has no number for.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.estimators import LogWeights, known_log_z
    >>> rule, zeros = known_log_z(np.array([0.0, 8.0, 5.0])), np.zeros((4, 2))
    >>> log_z, _ = rule.update({}, LogWeights(zeros, zeros, context=np.array([2, 1])))
    >>> log_z
    array([[5., 8.]])
    """
    _finite("a known log Z", value)

    def update(state: State, weights: LogWeights) -> tuple[Array, State]:
        xp = namespace(weights.policy)
        one = xp.zeros_like(weights.policy[:1])
        known = beside(one, value)
        if known.ndim == 0:
            return one + known, state
        table = xp.reshape(known, (-1,))
        if weights.context is None and tuple(known.shape) != tuple(one.shape[1:]):
            raise ValueError(
                f"known_log_z has log Z for contexts of shape {tuple(known.shape)} and got "
                f"log-weights for {tuple(one.shape[1:])} without saying which context each column "
                "is; pass LogWeights(context=ids)"
            )
        ids = _ids(xp, weights, table.shape[0], "known_log_z", _ONE_EACH)
        return _look_up(xp, table, ids, tuple(one.shape)), state

    return LogZ(dict, update, f"known_log_z({_brief(value)})", value=value, known=True)


def batch_log_z(*, leave_one_out: bool = False) -> LogZ:
    """Log-mean of the batch's importance weights, per context.

    Parameters
    ----------
    leave_one_out : bool
        Leave outcome i out of its own Ẑ₋ᵢ: no bias beyond that of an independent Ẑ from n − 1
        outcomes, at O(n²) cost. Default False: one Ẑ for all, with a bias of order 1/n.
    """

    def update(state: State, weights: LogWeights) -> tuple[Array, State]:
        log_w = weights.log_weight
        if not leave_one_out:
            return logmeanexp(log_w, keepdims=True), state
        xp = namespace(log_w)
        n = log_w.shape[0]
        own = xp.reshape(xp.arange(n), (n, 1)) == xp.reshape(xp.arange(n), (1, n))
        own = xp.reshape(own, (n, n) + (1,) * (log_w.ndim - 1))
        others = xp.where(own, -INF, log_w[:, None, ...])
        return logsumexp(others) - math.log(max(n - 1, 1)), state

    name = "batch_log_z(leave_one_out)" if leave_one_out else "batch_log_z"
    return LogZ(
        dict, update, name, independent=leave_one_out, min_outcomes=2 if leave_one_out else 1
    )


def running_log_z(*, decay: float | None = None) -> LogZ:
    """Log-mean of the importance weights of all *earlier* steps; the batch's at the first.

    For contexts that are the same, in the same order, at every step (one prompt, or a fixed
    list); `per_context_log_z` is for prompts drawn anew at each step. Every step's weights are
    unbiased for Z whatever its proposal was, so steps of a moving policy can be pooled.

    Parameters
    ----------
    decay : float, optional
        Weight of a step relative to the next one, in (0, 1). Default: all steps count alike.

    Raises
    ------
    ValueError
        At an update, if the contexts (their number, or their ids) are not those of the step
        before. Under ``jit``, where ids cannot be read, log Z is NaN instead.
    """
    keep = _decay(decay)

    def init() -> State:
        return {"origin": 0.0, "log_mean": -INF, "count": 0.0, "context": _NO_ID}

    def update(state: State, weights: LogWeights) -> tuple[Array, State]:
        now = logmeanexp(weights.log_weight)
        xp = namespace(now)
        past = _Past(*(beside(now, state[k]) for k in _Past._fields))
        if past.log_mean.shape not in ((), now.shape):
            raise ValueError(
                f"running_log_z saw contexts of shape {tuple(past.log_mean.shape)} before and "
                f"{tuple(now.shape)} now; {_PER_CONTEXT}"
            )
        # Ids are compared as floats: their type is the caller's, and none is above 2^24.
        given = _NO_ID if weights.context is None else weights.context
        before, ids = beside(now, state["context"]), beside(now, given) + xp.zeros_like(now)
        changed = (past.count > 0) & (before != ids)
        values = concrete(changed)
        if values is not None and values.any():
            raise ValueError(
                f"running_log_z saw the contexts {_named(before)} before and {_named(ids)} now, "
                f"and would use the log Z of others; {_PER_CONTEXT}"
            )
        log_z = xp.where(changed, math.nan, _recall(past, now))
        new = _remember(past, now, xp.ones_like(now), keep)
        return log_z, {**new._asdict(), "context": ids}

    return LogZ(init, update, "running_log_z" + _with(decay))


def per_context_log_z(num_contexts: int, *, decay: float | None = None) -> LogZ:
    """`running_log_z` kept in a table, one entry for each of ``num_contexts`` contexts.

    The columns of a batch are found by ``LogWeights.context``; a context that was never seen
    uses the batch's log Z.

    Parameters
    ----------
    num_contexts : int
        Number of distinct contexts; ids run from 0.
    decay : float, optional
        Weight of a visit relative to the next one, in (0, 1).
    """
    keep = _decay(decay)
    num_contexts = count_of("num_contexts", num_contexts)

    def init() -> State:
        zeros = [0.0] * num_contexts
        return {"origin": zeros, "log_mean": [-INF] * num_contexts, "count": zeros}

    def update(state: State, weights: LogWeights) -> tuple[Array, State]:
        now = logmeanexp(weights.log_weight)
        xp = namespace(now)
        ids = _ids(xp, weights, num_contexts, "per_context_log_z", "number of contexts")
        table = _Past(*(beside(now, state[k]) for k in _Past._fields))
        seen = _seen(xp, ids, num_contexts)
        visits = xp.sum(xp.where(seen, xp.reshape(xp.ones_like(now), (1, -1)), 0.0), axis=1)
        columns = xp.where(seen, xp.reshape(now, (1, -1)), -INF)
        mean = logsumexp(columns, axis=1) - xp.log(xp.where(visits > 0, visits, 1.0))
        past = _Past(*(_look_up(xp, t, ids, now.shape) for t in table))
        return _recall(past, now), _remember(table, mean, visits, keep)._asdict()

    return LogZ(init, update, f"per_context_log_z({num_contexts}{_with(decay, ', ')})")


def learnt_log_z(
    initial: float | Float[Any, " contexts"] = 0.0, *, learning_rate: float = 0.1
) -> LogZ:
    """A log Z that descends the trajectory-balance loss, ∂/∂log Z = mean residual.

    Parameters
    ----------
    initial : float or array, shape (num_contexts,)
        Starting value; with several contexts one for each, found by ``LogWeights.context``.
    learning_rate : float
        Step size of plain gradient descent.

    Raises
    ------
    ValueError
        For numbers that are not finite; at an update, for a context that it has no number for.
    """
    _finite("the initial log Z", initial)
    learning_rate = positive("learning_rate", learning_rate)

    def init() -> State:
        return {"log_z": initial}

    def update(state: State, weights: LogWeights) -> tuple[Array, State]:
        xp = namespace(weights.policy)
        saved = beside(weights.policy, state["log_z"])
        table = xp.reshape(saved, (-1,))
        size = table.shape[0]
        ids = _ids(xp, weights, size, "learnt_log_z", _ONE_EACH)
        d = xp.mean(weights.policy - weights.target, axis=0)
        value = _look_up(xp, table, ids, d.shape)
        residual = xp.reshape(d + value, (1, -1))
        step = xp.sum(xp.where(_seen(xp, ids, size), residual, 0.0), axis=1) / ids.shape[0]
        new = xp.reshape(table - learning_rate * step, saved.shape)
        return xp.zeros_like(weights.policy[:1]) + value, {"log_z": new}

    name = f"learnt_log_z({_brief(initial)}, learning_rate={learning_rate:g})"
    return LogZ(init, update, name, value=initial, learnt=True)


class _Past(NamedTuple):
    """Weights of earlier steps, of each context: their mean is exp(origin + log_mean)."""

    origin: Array
    """Log-mean of the first step that accepted an outcome: an offset of log P, far from which
    single precision has no digits for what a late step changes."""
    log_mean: Array
    count: Array


def _remember(past: _Past, now: Array, visits: Array, keep: float) -> _Past:
    """With the log-mean weight of a step that is worth ``visits``; 0 of them change nothing."""
    xp = namespace(now)
    fresh = past.log_mean == -INF
    origin = xp.where(fresh & (now > -INF), now, past.origin)
    count = xp.where(visits > 0, keep * past.count + visits, past.count)
    share = xp.where(visits > 0, visits, 0.0) / xp.where(count > 0, count, 1.0)
    # Its change, and not a total: late steps are less than the rounding of that.
    before = xp.where(fresh, 0.0, past.log_mean)
    kept = xp.where(fresh | (share >= 1), -INF, xp.log1p(-xp.where(share < 1, share, 0.0)))
    added = xp.where(share > 0, xp.log(xp.where(share > 0, share, 1.0)), -INF) + now - origin
    log_mean = before + xp.logaddexp(kept, added - before)
    return _Past(origin + xp.zeros_like(log_mean), log_mean, count)


def _recall(past: _Past, now: Array) -> Array:
    """Mean of the earlier weights; of this batch's where there are none."""
    xp = namespace(now)
    known = past.log_mean > -INF
    return xp.where(known, past.origin + xp.where(known, past.log_mean, 0.0), now)[None, ...]


def _ids(xp: Any, weights: LogWeights, size: int, who: str, table: str) -> Array:
    """Context ids of the columns, flat. Without ids the columns are the contexts, in order."""
    if weights.context is None:
        if size == math.prod(weights.policy.shape[1:]):
            return beside(weights.policy, list(range(size)), integer=True)
        raise ValueError(
            f"{who} has log Z for {size} contexts and got log-weights of shape "
            f"{tuple(weights.policy.shape)} without saying which context each column is; pass "
            "LogWeights(context=ids)"
        )
    ids = xp.reshape(beside(weights.policy, weights.context, integer=True), (-1,))
    values = concrete(ids)
    if values is not None and not ((values >= 0) & (values < size)).all():
        unknown = sorted({int(i) for i in values if not 0 <= i < size})
        raise ValueError(
            f"{who} has log Z for {size} context{'s'[: size > 1]} (ids from 0) and the batch has "
            f"contexts {unknown}; give it one for each context of the fit: {who}({table})"
        )
    return ids


def _brief(value: Any) -> str:
    """Numbers for a name: themselves where few, else their count and a checksum."""
    known = concrete(value) if is_array_api_obj(value) else np.asarray(value)
    if known is None:
        return "traced"
    if known.size > 4:
        return f"{known.size} numbers, {crc32(known.astype(float).tobytes()):08x}"
    return ", ".join(f"{x:.12g}" for x in known.astype(float).ravel())


def _with(decay: float | None, before: str = "(") -> str:
    after = ")" if before == "(" else ""
    return "" if decay is None else f"{before}decay={decay:g}{after}"


def _named(ids: Array) -> list[int] | int:
    return np.asarray(concrete(ids)).astype(int).tolist()


def _finite(what: str, value: Any) -> None:
    """Refuse log Z that is no finite real number, or array of them."""
    known = concrete(value) if is_array_api_obj(value) else np.asarray(value)
    if known is None:  # traced
        return
    real = known.dtype.kind in "fiu"
    if not real or not np.isfinite(known).all() or not known.size:
        raise ValueError(
            f"{what} must be a finite number, or an array with one for each context, got {value!r}"
        )


def _seen(xp: Any, ids: Array, size: int) -> Array:
    """seen[k, x]: column x is context k. A context may stand in several columns."""
    return xp.reshape(xp.arange(size), (size, 1)) == xp.reshape(ids, (1, -1))


def _look_up(xp: Any, table: Array, ids: Array, shape: tuple[int, ...]) -> Array:
    """Table entries of the columns; for an unknown id under ``jit`` NaN, which fits refuse."""
    size = table.shape[0]
    value = xp.take(table, xp.clip(ids, 0, size - 1), axis=0)
    return xp.reshape(xp.where((ids >= 0) & (ids < size), value, math.nan), shape)
