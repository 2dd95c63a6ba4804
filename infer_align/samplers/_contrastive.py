r"""What contrastive twist learning averages over: outcomes of the target, and of the twist."""

from typing import NamedTuple

import numpy as np

from infer_align._numerics import Array, concrete
from infer_align.samplers._filter import Rules, Scheme, Twist, particle_filter
from infer_align.samplers._resampling import systematic
from infer_align.samplers._smc import record, whole
from infer_align.samplers._source import Source, TokenStream
from infer_align.targets import WeightedSample


class Contrast(NamedTuple):
    r"""Prefixes and coefficients of the contrastive gradient.

    .. math:: ∇ \sum_t KL(p(y_{1:t}) ‖ π_t^ψ) = -\sum_t \left( E_p[∇ \log ψ_t(y_{1:t})]
              - E_{π_t^ψ}[∇ \log ψ_t(y_{1:t})] \right), \qquad π_t^ψ ∝ q(y_{1:t}) ψ_t(y_{1:t})

    The loss gradient is the sum of ``negative`` times ∇ log ψ over the prefixes less that of
    ``positive`` over the outcomes. An ended outcome counts at its end for all later t.
    """

    sample: WeightedSample
    """That the twist gives now."""
    prefixes: np.ndarray
    """Tokens drawn, (T, n, C, T): row t has t + 1 of them, then padding."""
    negative: np.ndarray
    """(T, n, C), summing to T in each context."""
    ancestors: list[np.ndarray | None]
    """Resampling before each token, (n, C); None: none."""
    outcomes: np.ndarray
    """Tokens of outcomes of the target, (k, C, T)."""
    positive: np.ndarray
    """(T, k, C), summing to T; 0 where the target accepted none (and so are the negatives)."""


def contrast(
    source: Source,
    stream: TokenStream,
    twist: Twist,
    n: int,
    *,
    outcomes: np.ndarray | None = None,
    scheme: Scheme = systematic,
    ess_threshold: float | int = 0.5,
) -> Contrast:
    """Run a filter and weigh its prefixes, for one step of learning its twist.

    Zhao, Brekelmans, Makhzani and Grosse 2024 (arXiv 2404.17546), section 4.

    Parameters
    ----------
    source : Source
    stream : TokenStream
    twist : NextTwist
        The present one.
    n : int
        Particles.
    outcomes : array, shape (k, *contexts, T), optional
        Exact draws of the target. Default: the filter's own, by their weights, which is biased
        until the twist is good.
    scheme, ess_threshold
        As for `smc`.
    """
    rules = Rules(twist, scheme, ess_threshold, source.rng)
    steps = list(particle_filter(stream, n, rules))
    final = whole(source, stream, steps[-1], rules)
    sample = record(source, stream, final, rules)
    contexts, length = final.log_weights.shape[1], stream.length
    prefixes = np.full((length, n, contexts, length), stream.pad)
    negative = np.zeros((length * n, contexts))
    columns = np.arange(contexts)
    for t in range(length):
        now = steps[min(t, len(steps) - 1)].particles
        if t < len(steps):
            prefixes[t, :, :, : t + 1] = now.prefix
        np.add.at(negative, (now.origin, columns), _normalised(now.log_weights))
    given = _flat(sample.outcomes if outcomes is None else outcomes, contexts)
    weights = _normalised(final.log_weights)
    if outcomes is not None:
        weights = np.full(given.shape[:2], 1 / len(given))
    end = np.isin(given, stream.eos)
    alive = end.cumsum(-1) - end == 0
    last = alive.sum(-1, keepdims=True) - 1
    times = np.where(np.arange(length) == last, length - last, alive)
    positive = np.moveaxis(times * weights[..., None], -1, 0)
    counts = weights.sum(axis=0) > 0
    return Contrast(
        sample,
        prefixes,
        negative.reshape(length, n, contexts) * counts,
        [step.ancestors for step in steps],
        given,
        positive,
    )


def _normalised(log_weights: np.ndarray) -> np.ndarray:
    return WeightedSample(None, log_weights, log_weights).probabilities


def _flat(outcomes: Array, contexts: int) -> np.ndarray:
    tokens = np.asarray(concrete(outcomes))
    return tokens.reshape(len(tokens), contexts, tokens.shape[-1])
