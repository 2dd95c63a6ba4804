"""Outcomes of any library, moved and chosen in NumPy, and given back as they came.

Inside a sampler the contexts are one axis: outcomes (n, C, ...), numbers (n, C).
"""

import math
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

from infer_align._arguments import count
from infer_align._numerics import concrete, namespace
from infer_align.samplers._source import Drawn, Source

Outcomes = Any
"""An array, or a dict of arrays by site."""


LARGEST = 2**28
"""Most numbers of a sample, draws times contexts: 2 GiB an array."""


def check_source(source: Any) -> None:
    """Refuse what is no `Source`: a target, a distribution."""
    if isinstance(source, type) or not all(hasattr(source, x) for x in ("shape", "draw", "rng")):
        raise TypeError(
            f"source must be a Source, got {source!r} ({type(source).__name__}); make one of a "
            "target: infer_align.jax.source(key, target) or infer_align.torch.source(target)"
        )


def sized(what: str, n: Any, source: Source, *, times: int = 1) -> int:
    """A count of outcomes per context that memory holds; ``times`` as many are kept."""
    check_source(source)
    whole, contexts = count(what, n), math.prod(source.shape)
    if whole * times * contexts > LARGEST:
        held = f" (times {times})" if times > 1 else ""
        raise ValueError(
            f"{what}={whole}{held} in {contexts} contexts is {whole * times * contexts:.3g} "
            f"log-weights, {whole * times * contexts / 2**27:.3g} GiB an array of them; at most "
            f"{LARGEST // contexts // times} are drawn at once: draw fewer, or in parts"
        )
    return whole


class Proposals(NamedTuple):
    """Draws of a proposal on the host, contexts flattened."""

    outcomes: Outcomes
    log_weights: np.ndarray
    log_target: np.ndarray
    original: Outcomes
    """As the source gave them: what their library is."""


def propose(source: Source, n: int) -> Proposals:
    """n fresh outcomes per context, checked."""
    drawn = source.draw(n)
    check(drawn, n, source)
    host = flat_contexts(to_host(drawn.outcomes), len(source.shape))
    log_target = drawn.log_target.reshape(n, -1)
    log_weights = np.where(
        log_target == -math.inf, -math.inf, log_target - drawn.log_proposal.reshape(n, -1)
    )
    return Proposals(host, log_weights, log_target, drawn.outcomes)


def check(drawn: Drawn, n: int, source: Source) -> None:
    """Refuse log-densities that are no log-densities."""
    shape = (n, *source.shape)
    for what, x in (("proposal", drawn.log_proposal), ("target", drawn.log_target)):
        if x.shape != shape:
            raise ValueError(
                f"the log-density of the {what} of {source.name!r} has shape {x.shape}; needed is "
                f"one number an outcome, {shape}"
            )
    check_log_target(drawn.log_target, source)
    if not np.all(np.isfinite(drawn.log_proposal)):
        raise ValueError(
            f"the proposal of {source.name!r} gave {int((~np.isfinite(drawn.log_proposal)).sum())} "
            "of its own draws a log-probability that is not finite; its sample and log_prob do "
            "not fit each other"
        )


def check_log_target(log_target: np.ndarray, source: Source) -> None:
    """Refuse NaN and ``+inf``."""
    bad = np.isnan(log_target) | (log_target == math.inf)
    if np.any(bad):
        raise ValueError(
            f"the log-density of target {source.name!r} is {log_target[bad][0]} for "
            f"{int(bad.sum())} of {bad.size} outcomes; it must be finite, or -inf for an outcome "
            "that the target rejects"
        )


def to_host(outcomes: Outcomes) -> Outcomes:
    """As NumPy arrays."""
    if isinstance(outcomes, dict):
        return {site: to_host(x) for site, x in outcomes.items()}
    return concrete(outcomes)


def like(host: Outcomes, original: Outcomes) -> Outcomes:
    """NumPy arrays in the library, and on the device, of other outcomes."""
    if isinstance(original, dict):
        return {site: like(host[site], x) for site, x in original.items()}
    if isinstance(original, np.ndarray):
        return host
    return namespace(original).asarray(host, device=device(original))


def each(function: Any, *outcomes: Outcomes) -> Outcomes:
    """A function of arrays, site by site."""
    if isinstance(outcomes[0], dict):
        return {site: function(*(x[site] for x in outcomes)) for site in outcomes[0]}
    return function(*outcomes)


def flat_contexts(host: Outcomes, ndim: int) -> Outcomes:
    """(n, *contexts, ...) as (n, C, ...)."""
    return each(lambda x: x.reshape(len(x), math.prod(x.shape[1 : 1 + ndim]), *x.shape[1 + ndim :]),
                host)  # fmt: skip


def with_contexts(host: Outcomes, shape: tuple[int, ...]) -> Outcomes:
    """(n, C, ...) as (n, *contexts, ...)."""
    return each(lambda x: x.reshape(len(x), *shape, *x.shape[2:]), host)


def take(host: Outcomes, rows: np.ndarray) -> Outcomes:
    """Rows (m, C) of outcomes (n, C, ...), chosen in each context."""
    return each(lambda x: x[rows, np.arange(rows.shape[1])], host)


def choose(condition: np.ndarray, yes: Outcomes, no: Outcomes) -> Outcomes:
    """``yes`` where the condition (n, C) holds, else ``no``."""
    return each(
        lambda a, b: np.where(condition.reshape(*condition.shape, *(1,) * (a.ndim - 2)), a, b),
        yes,
        no,
    )
