r"""Sequential Monte Carlo over tokens, and estimates that start from exact draws."""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from infer_align._arguments import array, number
from infer_align._numerics import concrete, logmeanexp
from infer_align.samplers._filter import (
    Moved,
    Particles,
    Rules,
    Scheme,
    Twist,
    particle_filter,
    reweighed,
)
from infer_align.samplers._outcomes import like, sized
from infer_align.samplers._resampling import multinomial, systematic
from infer_align.samplers._source import Source, TokenStream
from infer_align.samplers._twists import NextTwist, PrefixTwist
from infer_align.targets import WeightedSample


def smc(
    source: Source,
    n: int,
    *,
    twist: Twist | None = None,
    scheme: Scheme = systematic,
    ess_threshold: float | int = 0.5,
    stream: TokenStream | None = None,
) -> WeightedSample:
    r"""Twisted sequential Monte Carlo: n particles that grow token by token.

    .. math:: γ_t(y_{1:t}) = q(y_{1:t})\, ψ_t(y_{1:t}), \qquad γ(y) = P(y)

    The particles target γ_t after t tokens and are resampled where their weights are uneven; the
    last weights have the target itself, so :math:`E[\hat Z] = Z` and the outcomes are properly
    weighted whatever the twist (Del Moral 2004; Zhao et al. 2024, arXiv 2404.17546). Without a
    twist this is importance sampling.

    Parameters
    ----------
    source : Source
        Proposal q and target P.
    n : int
        Particles in each context.
    twist : NextTwist or PrefixTwist, optional
        See `next_twist` and `prefix_twist`. It may be −inf only for a prefix that no accepted
        outcome has; elsewhere Ẑ would be too small.
    scheme : callable
        `systematic`, `stratified`, `residual` or `multinomial`.
    ess_threshold : float
        A context is resampled when its ESS is at most this share of n: 0 never, 1 always.
    stream : TokenStream, optional
        Default ``source.tokens()``; one of your own where the twist shares it.

    Returns
    -------
    WeightedSample
        ``evidence`` is ``log_weights``, whose mean is Ẑ. Outcomes of one ``cluster`` descend from
        the same first particle: the clusters' spread gives the variance of Ẑ (Chan and Lai 2013;
        Lee and Whiteley 2018, arXiv 1509.00394). ``calls`` counts the tokens drawn, in outcomes,
        and the outcomes scored.

    Raises
    ------
    ValueError
        If n < 1, the threshold is not in [0, 1], the outcomes are not token sequences, or the
        twist is NaN, +inf or of a wrong shape.

    Examples
    --------
    >>> import numpy as np, jax, jax.numpy as jnp
    >>> import numpyro.distributions as dist
    >>> from infer_align import condition, jax as ij, samplers
    >>> prior = dist.Categorical(jnp.array([0.9, 0.1])).expand([6]).to_event(1)
    >>> target = condition(prior, lambda y: y.sum(-1) >= 5)  # one draw in 20,000
    >>> ahead = samplers.next_twist(
    ...     lambda prefix: 3.0 * np.arange(2) + 3.0 * np.sum(prefix, -1, keepdims=True))
    >>> sample = samplers.smc(ij.source(jax.random.key(0), target), 500, twist=ahead)
    >>> bool(abs(np.exp(sample.log_z) / 5.5e-5 - 1) < 0.2)
    True
    """
    _check_twist(twist)
    _check_numbers(source, n, ess_threshold)
    stream = source.tokens() if stream is None else stream
    rules = Rules(twist, scheme, ess_threshold, source.rng)
    return record(source, stream, _run(source, stream, n, rules), rules)


def conditional_smc(
    source: Source,
    outcomes: Any,
    n: int,
    *,
    twist: Twist | None = None,
    ess_threshold: float | int = 0.5,
    stream: TokenStream | None = None,
) -> Float[np.ndarray, "m *contexts"]:
    r"""log Ẑ of particle filters in which one particle is an outcome of the target.

    .. math:: y \sim p \;\Rightarrow\; E[1/\hat Z] = P(\hat Z_{\mathrm{smc}} > 0)/Z

    so that E[log Ẑ] >= log Z, where `smc` has <=. The probability is that a filter from nothing
    accepts an outcome: 1 unless the target rejects some. Bidirectional Monte Carlo (Grosse,
    Ghahramani and Adams 2015, arXiv 1511.02543) by conditional SMC (Andrieu, Doucet and
    Holenstein 2010). Resampling is multinomial: the others are then drawn as without the given
    outcome.

    Parameters
    ----------
    source : Source
    outcomes : array, shape (m, *contexts, T)
        Exact draws of the target (of a rejection sampler, say).
    n : int
        Particles, the given outcome one of them. n = 1 gives P/q of the outcome.
    twist, ess_threshold, stream
        As for `smc`.

    Returns
    -------
    array, shape (m, *contexts)
        log Ẑ of one filter for each outcome.

    Raises
    ------
    ValueError
        As `smc`; and for an outcome that the target, the proposal or the twist excludes.

    Examples
    --------
    >>> import numpy as np, jax, jax.numpy as jnp
    >>> import numpyro.distributions as dist
    >>> from infer_align import jax as ij, samplers, tilt
    >>> prior = dist.Categorical(jnp.array([0.5, 0.5])).expand([2]).to_event(1)
    >>> source = ij.source(jax.random.key(0), tilt(prior, lambda y: 1.0 * y.sum(-1), 1.0))
    >>> log_z = samplers.conditional_smc(source, jnp.array([[1, 1]]), 1)  # e^2, Z is 3.46
    >>> np.round(log_z, 4).tolist()
    [2.0]
    """
    _check_twist(twist)
    _check_numbers(source, n, ess_threshold)
    stream = source.tokens() if stream is None else stream
    array("outcomes", outcomes, need="an array of outcomes, (m, *contexts, T)")
    tokens = np.asarray(concrete(outcomes))
    shape = (len(tokens), *source.shape)
    if tokens.shape != (*shape, stream.length):
        raise ValueError(
            f"the outcomes have shape {tokens.shape}; needed are (m, *contexts, T) = "
            f"{('m', *source.shape, stream.length)}"
        )
    out = []
    for retained in tokens.reshape(len(tokens), -1, stream.length):
        rules = Rules(twist, multinomial, ess_threshold, source.rng, retained)
        out.append(logmeanexp(_run(source, stream, n, rules).log_weights))
    return np.stack(out).reshape(shape)


def conditional_importance(
    source: Source, outcomes: Any, n: int
) -> Float[np.ndarray, "m *contexts"]:
    r"""log Ẑ of an outcome of the target and n − 1 draws of the proposal.

    .. math:: \hat Z = \frac1n \Big(w(y) + \sum_{i<n} w(y_i)\Big), \quad y \sim p, y_i \sim q
              \;\Rightarrow\; E[1/\hat Z] = (1 - r^n)/Z

    with r = q(P = 0), 0 unless the target rejects outcomes, so that E[log Ẑ] >= log Z (Grosse et
    al. 2015, arXiv 1511.02543; Burda, Grosse and Salakhutdinov 2015, arXiv 1509.00519, for the
    other side).

    Parameters
    ----------
    source : Source
    outcomes : array or dict of arrays, shape (m, *contexts, ...)
        Exact draws of the target.
    n : int
        Weights in each mean.

    Returns
    -------
    array, shape (m, *contexts)

    Raises
    ------
    ValueError
        If n < 1, or the target or the proposal excludes an outcome.

    Examples
    --------
    >>> import numpy as np, jax, jax.numpy as jnp
    >>> import numpyro.distributions as dist
    >>> from infer_align import condition, jax as ij, samplers
    >>> target = condition(dist.Categorical(jnp.array([0.5, 0.5])), lambda y: y == 1)
    >>> source = ij.source(jax.random.key(0), target)
    >>> log_z = samplers.conditional_importance(source, jnp.ones(2000, int), 4)
    >>> bool(abs(np.exp(-log_z).mean() - 2) < 0.2)
    True
    """
    _check_numbers(source, n, 0)
    if not isinstance(outcomes, dict):
        array("outcomes", outcomes, need="an array of outcomes, (m, *contexts, ...)")
    given = np.asarray(source.log_target(outcomes)) - np.asarray(source.log_proposal(outcomes))
    _refuse_excluded(given)
    if n == 1:
        return given
    drawn = source.draw((n - 1) * len(given))
    log_q = np.where(drawn.log_target > -math.inf, drawn.log_proposal, 0.0)
    others = (drawn.log_target - log_q).reshape(n - 1, *given.shape)
    return logmeanexp(np.concatenate([given[None], others]))


class Final(NamedTuple):
    """The particles of whole outcomes."""

    last: Particles
    outcomes: Any
    """(n, *contexts, T), in the model's library."""
    log_target: np.ndarray
    log_weights: np.ndarray
    """Of the target itself, (n, C)."""


def _run(source: Source, stream: TokenStream, n: int, rules: Rules) -> Final:
    return whole(source, stream, list(particle_filter(stream, n, rules))[-1], rules)


def whole(source: Source, stream: TokenStream, moved: Moved, rules: Rules) -> Final:
    """The end of a filter: outcomes, padded and scored by the target."""
    last = moved.particles
    n, contexts, t = last.prefix.shape
    if contexts != math.prod(source.shape):
        raise ValueError(
            f"the stream has {contexts} contexts and the source {math.prod(source.shape)}, of "
            f"shape {source.shape}; make both of the same contexts"
        )
    padding = ((0, 0), (0, 0), (0, stream.length - t))
    tokens = np.pad(last.prefix, padding, constant_values=stream.pad)
    outcomes = like(tokens.reshape(n, *source.shape, stream.length), moved.like)
    log_target = np.asarray(source.log_target(outcomes), dtype=np.float64).reshape(n, contexts)
    log_weights = reweighed(last.log_weights, log_target, last.log_q + last.log_psi)
    if rules.retained is not None:
        _refuse_excluded(log_weights[0])
    return Final(last, outcomes, log_target, log_weights)


def record(source: Source, stream: TokenStream, final: Final, rules: Rules) -> WeightedSample:
    """What a filter returns."""
    last, n = final.last, len(final.log_weights)
    shape = (n, *source.shape)
    eve, log_weights = last.eve.reshape(shape), final.log_weights.reshape(shape)
    return WeightedSample(
        final.outcomes,
        log_weights,
        final.log_target.reshape(shape),
        evidence=log_weights,
        cluster=eve,
        evidence_cluster=eve,
        calls=math.ceil(n * last.prefix.shape[-1] / stream.length) + n,
        method=f"SMC, n={n}, {_name(rules.scheme)} at ESS <= {rules.ess_threshold:g} n"
        + ("" if rules.twist is not None else ", no twist"),
        log_target_se=source.log_target_se(final.outcomes),
    )


def _check_numbers(source: Source, n: int, ess_threshold: float | int) -> None:
    sized("n", n, source)
    need = "a share of n between 0 (never resample) and 1 (always)"
    if not 0 <= number("ess_threshold", ess_threshold, need=need) <= 1:
        raise ValueError(
            f"ess_threshold is a share of n between 0 (never resample) and 1 (always), got "
            f"{ess_threshold}"
        )


def _check_twist(twist: Any) -> None:
    if twist is not None and not isinstance(twist, NextTwist | PrefixTwist):
        raise TypeError(
            f"twist must be a twist, got {twist!r} ({type(twist).__name__}); make one of a "
            "function: samplers.next_twist(...) or samplers.prefix_twist(...)"
        )


def _refuse_excluded(log_weights: np.ndarray) -> None:
    if not np.all(np.isfinite(log_weights)):
        raise ValueError(
            "an outcome to start from has weight 0 or infinity: the target or the proposal "
            "excludes it; give exact draws of the target, and a proposal that covers them"
        )


def _name(scheme: Scheme) -> str:
    return getattr(scheme, "__name__", type(scheme).__name__)
