r"""Token streams side by side, as the stream of their mixture.

.. math:: q(y_{t+1} | y_{1:t}) = \sum_k w_k\, q_k(y_{t+1} | y_{1:t}), \quad
          w_k ∝ a_k\, q_k(y_{1:t})

Which component an outcome is of is not drawn but summed out, so that the steps add up to the
mixture's log-probability.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from infer_align._numerics import Array, logsumexp, namespace
from infer_align.samplers._outcomes import like
from infer_align.samplers._source import TokenStream

Compile = Callable[[Callable[..., Array]], Callable[..., Array]]


class MixtureStream:
    """A `TokenStream` of a mixture.

    Parameters
    ----------
    streams : sequence of TokenStream
        Of the components, in one array library. They are advanced together.
    log_weights : sequence of float
        Normalised.
    compiled : callable, optional
        What makes a function of arrays fast in their library, such as ``jax.jit``.

    Raises
    ------
    ValueError
        For components of another length, vocabulary, EOS or padding.
    """

    def __init__(
        self,
        streams: Sequence[TokenStream],
        log_weights: Sequence[float],
        compiled: Compile = lambda function: function,
    ) -> None:
        _check_alike(streams)
        first = streams[0]
        self.length, self.vocabulary_size = first.length, first.vocabulary_size
        self.eos, self.pad = first.eos, first.pad
        self._streams, self._prior = tuple(streams), np.array(log_weights)
        self._update, self._mix = compiled(_updated), compiled(_mixed)

    def start(self, n: int) -> Array:
        """Log-probabilities of the first token, (n, C, V)."""
        self._laws = [stream.start(n) for stream in self._streams]
        contexts = self._laws[0].shape[1]
        rows = np.tile(self._prior[:, None, None], (1, n, contexts))
        xp = namespace(*self._laws)
        self._log_weights = xp.astype(like(rows, self._laws[0]), self._laws[0].dtype)
        return self._mix(self._log_weights, self._laws)

    def advance(self, tokens: Array, ancestors: np.ndarray | None = None) -> Array:
        """Log-probabilities of the token after ``tokens``, (n, C, V)."""
        n, contexts = tokens.shape
        own = np.tile(np.arange(n)[:, None], (1, contexts))
        rows, columns = (
            like(x, tokens) for x in (own if ancestors is None else ancestors, np.arange(contexts))
        )
        self._log_weights = self._update(self._log_weights, self._laws, rows, columns, tokens)
        self._laws = [stream.advance(tokens, ancestors) for stream in self._streams]
        return self._mix(self._log_weights, self._laws)


def _updated(
    log_weights: Array, laws: list[Array], rows: Array, columns: Array, tokens: Array
) -> Array:
    """Log-weights (K, n, C) given one more token, of rows that may have been resampled."""
    xp = namespace(log_weights)
    # What an ended particle appends may be no token; its weights are never read.
    known = xp.clip(tokens, 0, laws[0].shape[-1] - 1)
    before = log_weights[:, rows, columns]
    after = before + xp.stack([law[rows, columns, known] for law in laws])
    total = logsumexp(after, axis=0, keepdims=True)
    # No component draws a prefix that a substitution made: what follows it is arbitrary.
    possible = total > -math.inf
    return xp.where(possible, after - xp.where(possible, total, 0.0), before)


def _mixed(log_weights: Array, laws: list[Array]) -> Array:
    """The law of the next token, (n, C, V)."""
    xp = namespace(log_weights)
    terms = [log_weights[k][..., None] + law for k, law in enumerate(laws)]
    return logsumexp(xp.stack(terms), axis=0)


def _check_alike(streams: Sequence[TokenStream]) -> None:
    """Refuse components whose outcomes are not the same token sequences."""
    for number, stream in enumerate(streams[1:], start=1):
        for what in ("length", "vocabulary_size", "eos", "pad"):
            ours, theirs = getattr(streams[0], what), getattr(stream, what)
            if ours != theirs:
                raise ValueError(
                    "the components of a mixture that is drawn token by token must have the same "
                    f"{what}; component 0 has {ours} and component {number} has {theirs}: make "
                    "them over the same token sequences, or sample with a method that draws whole "
                    "outcomes (importance, rejection)"
                )
