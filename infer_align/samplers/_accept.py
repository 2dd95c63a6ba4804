"""Draw until enough proposals are accepted in every context."""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from infer_align._arguments import count
from infer_align.samplers._outcomes import LARGEST, Outcomes, each, propose, sized
from infer_align.samplers._source import Source

LEAST_BATCH, LARGEST_BATCH = 64, 16384


class Accepted(NamedTuple):
    """n outcomes in each of C contexts, and all the proposals that it took."""

    outcomes: Outcomes
    """(n, C, ...); rejected ones fill up a context with fewer than n."""
    log_weights: np.ndarray
    """log P/q, (n, C); ``-inf`` for what only fills up."""
    log_target: np.ndarray
    evidence: np.ndarray
    """log P/q of the proposals before the one that completed the sample, (m, C)."""
    counts: np.ndarray
    """Accepted in each context, at most n; (C,)."""
    calls: int
    acceptance: np.ndarray
    """Share of the proposals, (C,)."""
    original: Outcomes


def accept(
    source: Source, n: int, log_acceptance: Callable[[np.ndarray], np.ndarray], max_calls: int
) -> Accepted:
    """Accept proposals with probability exp(log_acceptance(log P/q)) until each context has n.

    The number of proposals depends on what was accepted, so the mean of P/q over all of them is
    biased. It is not if the last one is left out (inverse sampling, Haldane 1945): the means of
    the first k are a reverse martingale, and "proposal k + 1 completes the sample" is known from
    the order-free content of the first k and from what follows. So too with a least k, which is
    the first batch but one.
    """
    n, max_calls = sized("n", n, source), count("max_calls", max_calls)
    if max_calls < max(n, 2):
        raise ValueError(
            f"n must be at least 1 and max_calls at least n and 2, got n={n}, max_calls={max_calls}"
        )
    first = min(max_calls, max(n, LEAST_BATCH))
    size, calls = first, 0
    kept: _Kept | None = None
    evidence: list[np.ndarray] = []
    while size > 0:
        batch = propose(source, size)
        u = source.rng.exponential(size=batch.log_weights.shape)
        chosen = -u < log_acceptance(batch.log_weights)
        if kept is None:
            kept = _Kept(n, batch)
        room = (calls + size) * batch.log_weights.shape[1]
        if room > LARGEST:
            raise ValueError(
                f"{calls + size} proposals in {batch.log_weights.shape[1]} contexts and n={n} not "
                f"reached: their log-weights alone would be {room * 8 / 2**30:.3g} GiB; lower "
                "max_calls, or use a proposal closer to the target"
            )
        kept.add(batch, chosen, calls)
        evidence.append(batch.log_weights)
        calls += size
        size = min(kept.next_batch(calls), max_calls - calls)
    assert kept is not None
    rows = max(kept.completed, first - 1) if np.all(kept.counts >= n) else calls
    return Accepted(
        kept.outcomes, kept.log_weights, kept.log_target, np.concatenate(evidence)[:rows],
        np.minimum(kept.counts, n), calls, kept.counts / calls, kept.original,
    )  # fmt: skip


class _Kept:
    """The first n accepted outcomes of each context."""

    def __init__(self, n: int, batch) -> None:
        rows = np.arange(n) % len(batch.log_target)
        self.n, self.original = n, batch.original
        self.outcomes = each(lambda x: x[rows], batch.outcomes)
        self.log_target = batch.log_target[rows]
        self.log_weights = np.full(self.log_target.shape, -math.inf)
        self.counts = np.zeros(self.log_target.shape[1], dtype=int)
        self.completed = 0
        """Number of proposals before the one that completed the last context."""

    def add(self, batch, chosen: np.ndarray, before: int) -> None:
        place = self.counts + np.cumsum(chosen, axis=0) - 1
        rows, columns = np.nonzero(chosen & (place < self.n))
        to = place[rows, columns]

        def put(kept: np.ndarray, new: np.ndarray) -> np.ndarray:
            kept[to, columns] = new[rows, columns]
            return kept

        each(put, self.outcomes, batch.outcomes)
        put(self.log_target, batch.log_target)
        put(self.log_weights, batch.log_weights)
        last = rows[to == self.n - 1]
        self.completed = max(self.completed, *(before + last)) if len(last) else self.completed
        self.counts = self.counts + chosen.sum(axis=0)

    def next_batch(self, calls: int) -> int:
        """About as many proposals as the slowest context still needs; 0 if none does."""
        missing = np.maximum(self.n - self.counts, 0)
        if not np.any(missing):
            return 0
        rate = (self.counts + 0.5) / calls
        wanted = int(np.ceil(1.1 * np.max(missing / rate)))
        return min(max(wanted, LEAST_BATCH), LARGEST_BATCH)


def report_short(
    counts: np.ndarray, n: int, calls: int, source: Source, *, what: str, remedy: str
) -> str:
    """A note on contexts with fewer than n, which is a warning too; "" if there is none."""
    short = np.flatnonzero(counts < n)
    if len(short) == 0:
        return ""
    worst = int(short[np.argmin(counts[short])])
    note = (
        f"short in {len(short)} of {len(counts)} contexts: {counts[worst]} of {n} accepted in "
        f"{calls} calls"
    )
    where = f" (context {worst})" if len(counts) > 1 else ""
    warnings.warn(f"{what} of {source.name!r}: {note}{where}; {remedy}", stacklevel=4)
    return note
