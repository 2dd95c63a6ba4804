"""A particle filter over tokens, for every context at once: `smc` and its relatives."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from array_api_compat import is_torch_array

from infer_align._numerics import Array, logmeanexp, namespace
from infer_align.samplers._outcomes import like
from infer_align.samplers._source import TokenStream
from infer_align.samplers._twists import NextTwist, PrefixTwist

Scheme = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
Twist = NextTwist | PrefixTwist


class Particles(NamedTuple):
    """n prefixes in each of C contexts, in NumPy; all but the first of shape (n, C)."""

    prefix: np.ndarray
    """Tokens so far, (n, C, t)."""
    log_weights: np.ndarray
    """Of the target q(y_{1:t}) ψ_t(y_{1:t})."""
    log_q: np.ndarray
    """log q(y_{1:t})."""
    log_psi: np.ndarray
    """log ψ_t(y_{1:t}), of an ended outcome that at its end."""
    ended: np.ndarray
    """Whether the prefix has its EOS."""
    eve: np.ndarray
    """Which particle of the first step each descends from."""
    origin: np.ndarray
    """Where log_psi was last read, as t·n + row: an ended outcome keeps that of its end."""


class Rules(NamedTuple):
    """What a filter does between tokens."""

    twist: Twist | None
    scheme: Scheme
    ess_threshold: float | int
    rng: np.random.Generator
    retained: np.ndarray | None = None
    """Outcomes (C, T) that the first particle follows, whatever is drawn; None: it is free."""


class _Next(NamedTuple):
    """Of the next token, (n, C, V), in the library that it is drawn in."""

    log_q: Array
    log_psi: Array | None
    cumulative: Array
    """Sums of q·ψ/exp(top) over V, float64."""
    top: Array


class Moved(NamedTuple):
    """A filter after one more token."""

    particles: Particles
    ancestors: np.ndarray | None
    """Resampling before the token was drawn, (n, C)."""
    like: Array
    """An array of the model's library."""


def particle_filter(stream: TokenStream, n: int, rules: Rules) -> Iterator[Moved]:
    """The particles after each token, until all have ended.

    A step weighs by the sum of q·ψ over the next token, where the twist has it; resamples where
    the weights are uneven; draws the next token; and weighs by ψ, where the twist has only that.
    """
    log_probs = stream.start(n)
    zero = np.zeros((n, log_probs.shape[1]))
    rows = np.broadcast_to(np.arange(n)[:, None], zero.shape)
    prefix = np.zeros((*zero.shape, 0), dtype=np.int64)
    now = Particles(prefix, zero, zero, zero, zero > 0, rows, rows)
    for t in range(stream.length):
        following, now = _look(log_probs, now, rules.twist)
        ancestors, weights = _resample(now.log_weights, rules) if t else (None, now.log_weights)
        if ancestors is not None:
            following = _Next(*(x if x is None else _gather(x, ancestors) for x in following))
            now = Particles(*(_gather(x, ancestors) for x in now))._replace(log_weights=weights)
        now = _extend(following, now, stream, rules, log_probs)
        yield Moved(now, ancestors, log_probs)
        if t + 1 == stream.length or now.ended.all():
            return
        log_probs = stream.advance(like(now.prefix[..., -1], log_probs), ancestors)


def reweighed(log_weights: np.ndarray, gain: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """``log_weights + gain - loss``; what has weight 0 keeps it."""
    dead = (log_weights == -math.inf) | (gain == -math.inf)
    change = np.where(dead, 0.0, gain) - np.where(dead, 0.0, loss)
    return np.where(dead, -math.inf, log_weights + change)


def on_host(x: Array) -> np.ndarray:
    """As NumPy float64."""
    return np.asarray(x.detach().cpu() if is_torch_array(x) else x, dtype=np.float64)


def _workspace(x: Array) -> Array:
    """Torch stays where it is: a vocabulary is large there. All else goes to NumPy float64."""
    return x if is_torch_array(x) else on_host(x)


def _look(log_probs: Array, now: Particles, twist: Twist | None) -> tuple[_Next, Particles]:
    """The masses by which the next token is drawn, and particles whose weights bear their sum."""
    log_q = _workspace(log_probs)
    if not isinstance(twist, NextTwist):
        return _Next(log_q, None, *_cumulative(log_q)), now
    log_psi = twist.next_log_psi(like(now.prefix, log_probs))
    log_psi = log_psi if is_torch_array(log_psi) else like(on_host(log_psi), log_q)
    if tuple(log_psi.shape) != tuple(log_q.shape):
        raise ValueError(
            f"next_log_psi gave an array of shape {tuple(log_psi.shape)}; needed is one number "
            f"for each particle, context and next token, {tuple(log_q.shape)}"
        )
    following = _Next(log_q, log_psi, *_cumulative(log_q + log_psi))
    with np.errstate(divide="ignore"):
        log_total = np.log(on_host(following.cumulative[..., -1])) + on_host(following.top)[..., 0]
    going = ~now.ended & (now.log_weights > -math.inf)
    _check(log_total[going], "next_log_psi")
    weights = np.where(going, reweighed(now.log_weights, log_total, now.log_psi), now.log_weights)
    return following, now._replace(log_weights=weights)


def _cumulative(log_mass: Array) -> tuple[Array, Array]:
    xp = namespace(log_mass)
    top = xp.max(log_mass, axis=-1, keepdims=True)
    top = xp.where(top == -math.inf, xp.zeros_like(top), top)
    return xp.cumulative_sum(xp.exp(log_mass - top), axis=-1, dtype=xp.float64), top


def _extend(
    following: _Next, now: Particles, stream: TokenStream, rules: Rules, original: Array
) -> Particles:
    """One more token each, and the weights that it gives; padding after the end."""
    token = _draw(following.cumulative, rules.rng.random(now.ended.shape))
    if rules.retained is not None:
        token[0] = rules.retained[:, now.prefix.shape[-1]]
    token = np.where(now.ended, 0, token)
    log_q = now.log_q + np.where(now.ended, 0.0, _pick(following.log_q, token))
    shown = np.where(now.ended, stream.pad, token)
    prefix = np.concatenate([now.prefix, shown[..., None]], axis=-1)
    ended = now.ended | np.isin(token, stream.eos)
    weights, log_psi = now.log_weights, now.log_psi
    going = ~now.ended & (weights > -math.inf)
    if following.log_psi is not None:
        log_psi = np.where(going, _pick(following.log_psi, token), log_psi)
        weights = np.where(going & (log_psi == -math.inf), -math.inf, weights)
    elif isinstance(rules.twist, PrefixTwist):
        new = on_host(rules.twist.log_psi(like(prefix, original)))
        if new.shape != log_psi.shape:
            raise ValueError(
                f"log_psi gave an array of shape {new.shape}; needed is one number for each "
                f"particle and context, {log_psi.shape}"
            )
        _check(new[going], "log_psi")
        weights = np.where(going, reweighed(weights, new, log_psi), weights)
        log_psi = np.where(going, new, log_psi)
    if rules.retained is not None and np.any(weights[0] == -math.inf):
        raise ValueError(
            "the twist excludes the beginning of an outcome that the target accepts; −inf is only "
            "for prefixes that no accepted outcome has"
        )
    n = len(now.ended)
    here = now.prefix.shape[-1] * n + np.arange(n)[:, None]
    origin = np.where(now.ended, now.origin, here)
    return Particles(prefix, weights, log_q, log_psi, ended, now.eve, origin)


def _draw(cumulative: Array, uniform: np.ndarray) -> np.ndarray:
    """Tokens at which cumulative masses (n, C, V) pass the uniforms (n, C); none of mass 0."""
    xp = namespace(cumulative)
    total = cumulative[..., -1:]
    level = like(uniform[..., None], cumulative) * total
    token = xp.sum(xp.astype(cumulative <= level, xp.int64), axis=-1)
    last = xp.sum(xp.astype(cumulative < total, xp.int64), axis=-1)
    return np.array(on_host(xp.minimum(token, last)), dtype=np.int64)


def _pick(values: Array, token: np.ndarray) -> np.ndarray:
    """Entries of values (n, C, V) at the tokens (n, C), on the host."""
    xp = namespace(values)
    index = like(token[..., None], values)
    return on_host(xp.take_along_axis(values, index, axis=-1)[..., 0])


def _gather(x: Array, ancestors: np.ndarray) -> Array:
    """Rows of x (n, C, ...) by ancestors (n, C)."""
    xp, (n, contexts) = namespace(x), ancestors.shape
    rows = like((ancestors * contexts + np.arange(contexts)).ravel(), x)
    flat = xp.reshape(x, (n * contexts, *x.shape[2:]))
    return xp.reshape(xp.take(flat, rows, axis=0), x.shape)


def _resample(log_weights: np.ndarray, rules: Rules) -> tuple[np.ndarray | None, np.ndarray]:
    """Whom each particle goes on from, (n, C), or None; and the weights from then on."""
    n = len(log_weights)
    top = log_weights.max(axis=0)
    p = np.exp(log_weights - np.where(top > -math.inf, top, 0.0))
    p = p / np.where(top > -math.inf, p.sum(axis=0), 1.0)
    # ESS <= threshold·n; equal weights have ESS = n whatever their rounding.
    few = 1 <= rules.ess_threshold * n * (p**2).sum(axis=0) * (1 + 1e-9)
    uneven = few & (top > -math.inf)
    if not uneven.any():
        return None, log_weights
    ancestors = np.tile(np.arange(n)[:, None], (1, log_weights.shape[1]))
    ancestors[:, uneven] = rules.scheme(p[:, uneven], n, rules.rng)
    if rules.retained is not None:
        ancestors[0] = 0
    return ancestors, np.where(uneven, logmeanexp(log_weights), log_weights)


def _check(values: np.ndarray, name: str) -> None:
    if np.isnan(values).any() or (values == math.inf).any():
        raise ValueError(
            f"the twist's {name} is NaN or +inf; log ψ must be finite, or −inf for a prefix that "
            "the target never accepts"
        )
