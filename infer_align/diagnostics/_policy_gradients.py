r"""Gradients that estimators give a policy whose outcomes are listed.

With all ∇log π(y) known, the gradient of a batch is a sum over the list, Σ_y C_y ∇log π(y), where
C_y adds up the coefficients of the draws of y. So thousands of batches cost one matrix product.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from infer_align.diagnostics._gradients import UNBIASED, Measurement
from infer_align.estimators import Claim, Estimator, LogWeights, checked_update

WARM_UP = 50
"""Batches before the first, for estimators that remember."""
TIMED = 9
"""Steps whose median is the time."""


class Listed(NamedTuple):
    """A policy and a target over N listed outcomes, in NumPy float64."""

    scores: np.ndarray
    """∇log π, (N, *contexts, P); 0 where the policy never draws."""
    log_policy: np.ndarray
    log_density: np.ndarray
    log_proposal: np.ndarray | None

    def batch(self, index: np.ndarray) -> LogWeights:
        """Of outcomes by their numbers, shape (n, *contexts)."""
        pick = lambda table: np.take_along_axis(table, index, axis=0)
        proposal = None if self.log_proposal is None else pick(self.log_proposal)
        contexts = self.log_policy.shape[1:]
        ids = np.arange(int(np.prod(contexts))).reshape(contexts)
        return LogWeights(pick(self.log_policy), pick(self.log_density), proposal, ids)


def gradients(listed: Listed, estimator: Estimator, index: np.ndarray) -> np.ndarray:
    """One gradient a batch, (batches − WARM_UP, P); the estimator's state goes from one to next.

    Parameters
    ----------
    listed : Listed
    estimator : Estimator
    index : int array, shape (batches, n, *contexts)
        Which outcomes were drawn.
    """
    state, tables = estimator.init(), []
    columns = tuple(np.indices(index.shape[1:])[1:])
    for number, drawn in enumerate(index):
        update = checked_update(estimator, state, listed.batch(drawn))
        state = update.state
        if number >= WARM_UP:
            table = np.zeros(listed.log_policy.shape)
            np.add.at(table, (drawn, *columns), update.coefficients)
            tables.append(table.reshape(-1))
    return np.stack(tables) @ listed.scores.reshape(-1, listed.scores.shape[-1])


def checked(estimators: Mapping[str, Estimator], n: int, outcomes: int) -> None:
    """Refuse what cannot be compared, before anything is drawn."""
    if not isinstance(estimators, Mapping) or not estimators:
        raise ValueError(
            f"estimators is {estimators!r}; needed is a mapping from labels to estimators, such as "
            '{"reinforce": reinforce()}'
        )
    if n < 2:
        raise ValueError(f"n is the number of gradients of each estimator, at least 2, got {n}")
    for label, estimator in estimators.items():
        if not isinstance(estimator, Estimator):
            raise TypeError(
                f"{label!r} is {estimator!r}; needed is an Estimator of infer_align.estimators"
            )
        if outcomes < estimator.min_outcomes:
            raise ValueError(
                f"{label!r} ({estimator.name}) needs at least {estimator.min_outcomes} outcomes "
                f"per context, got outcomes={outcomes}; raise it"
            )


def has_exact(estimator: Estimator, *, off_policy: bool) -> bool:
    """Whether its loss is known: not where it moves with a log Z that is learnt."""
    learns = bool(estimator.init().get("log_z")) and estimator.off_policy is Claim.UNBIASED
    return not (off_policy and learns)


def measurement(
    listed: Listed, label: str, estimator: Estimator, index: np.ndarray,
    slopes: np.ndarray | None, seconds: float, flops: float,
) -> Measurement:  # fmt: skip
    """What `compare_gradients` needs of one estimator.

    Parameters
    ----------
    listed, label, estimator, index
        As for `gradients`.
    slopes : array, shape (N, *contexts), optional
        Derivative of the exact loss in log π.
    seconds, flops : float
        Of one gradient.
    """
    with of_row(label):
        found = gradients(listed, estimator, index)
    exact = None
    if slopes is not None:
        slopes = np.where(np.isneginf(listed.log_policy), 0.0, slopes)
        exact = np.tensordot(slopes, listed.scores, axes=slopes.ndim)
    claim = estimator.on_policy if listed.log_proposal is None else estimator.off_policy
    said = UNBIASED if claim is Claim.UNBIASED else claim.value
    return Measurement(found, exact, seconds=seconds, flops=flops, claim=said)


@contextmanager
def of_row(label: str) -> Iterator[None]:
    """Say in which row a ValueError arose."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{label!r}: {error}") from error


def timed(labels: Iterable[str], step: Callable[[str], object]) -> dict[str, float]:
    """Median seconds of a step by label. They take turns, so that a busy moment hits all alike.

    Parameters
    ----------
    labels : iterable of str
    step : callable
        Takes the whole way to one gradient, and returns when it is there.
    """
    seconds: dict[str, list[float]] = {label: [] for label in labels}
    for number in range(TIMED + 1):
        for label, taken in seconds.items():
            start = time.perf_counter()
            with of_row(label):
                step(label)
            if number:  # the first is slower
                taken.append(time.perf_counter() - start)
    return {label: statistics.median(taken) for label, taken in seconds.items()}


def source(count: int) -> str:
    """Where the exact gradients come from, for the table."""
    return (
        f"of each estimator's own loss, by autodiff over {count} listed outcomes; compare rows "
        "with other losses by rel. sd"
    )
