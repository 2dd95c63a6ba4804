"""Proposals of local-edit Metropolis: another token, or another end."""

import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from infer_align._numerics import concrete
from infer_align.samplers._outcomes import flat_contexts, like, propose, with_contexts
from infer_align.samplers._source import Source, TokenStream

Edited = tuple[np.ndarray, np.ndarray, np.ndarray]
"""New tokens (n, C, T), their log q, and log |y| − log |y′| of the regenerated ones."""


@runtime_checkable
class Edits(Protocol):
    """Both moves, each chain with its own."""

    @property
    def calls(self) -> int:
        """What a step costs, in outcomes drawn or scored for each chain, the target's included."""
        ...

    def edit(self, tokens: np.ndarray, substituted: np.ndarray, rng: np.random.Generator) -> Edited:
        """Substitute one token where ``substituted`` (n, C) holds, else regenerate."""
        ...


def lengths(tokens: np.ndarray, eos: tuple[int, ...]) -> np.ndarray:
    """Number of tokens of each sequence, its EOS included."""
    ends = np.isin(tokens, eos)
    return np.where(ends.any(-1), np.argmax(ends, axis=-1) + 1, tokens.shape[-1])


def substitute(
    tokens: np.ndarray, vocabulary_size: int, eos: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray:
    """Another token at a uniform position before the end; nothing where there is no choice."""
    n_free = lengths(tokens, eos) - np.isin(tokens, eos).any(-1)
    others = np.setdiff1d(np.arange(vocabulary_size), eos)
    shape = tokens.shape[:-1]
    position = np.minimum((rng.random(shape) * n_free).astype(int), np.maximum(n_free - 1, 0))
    current = np.take_along_axis(tokens, position[..., None], axis=-1)[..., 0]
    if len(others) < 2:
        return tokens
    shift = 1 + (rng.random(shape) * (len(others) - 1)).astype(int)
    new = others[(np.searchsorted(others, current) + shift) % len(others)]
    out = tokens.copy()
    new = np.where(n_free > 0, new, current).astype(tokens.dtype)
    np.put_along_axis(out, position[..., None], new[..., None], axis=-1)
    return out


class TokenEdits(NamedTuple):
    """Edits of token sequences, whose end is drawn from the proposal's next-token law.

    One pass of the stream draws the ends and scores what was substituted.
    """

    stream: TokenStream
    dtype: Any

    @property
    def calls(self) -> int:
        """The stream's pass, and the target's."""
        return 2

    def edit(self, tokens: np.ndarray, substituted: np.ndarray, rng: np.random.Generator) -> Edited:
        """As `Edits`."""
        eos = self.stream.eos
        other = substitute(tokens, self.stream.vocabulary_size, eos, rng)
        kept = np.where(substituted[..., None], other, tokens)
        before = lengths(tokens, eos)
        cut = (rng.random(before.shape) * before).astype(int)
        cut = np.where(substituted, self.stream.length, np.minimum(cut, before - 1))
        new, log_proposal = self.regenerate(kept, cut, rng)
        return new, log_proposal, np.log(before) - np.log(lengths(new, eos))

    def regenerate(
        self, tokens: np.ndarray, cut: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw the tokens from ``cut`` (n, C) on; all tokens and their log q."""
        stream, (n, _, length) = self.stream, tokens.shape
        out = np.full(tokens.shape, stream.pad, dtype=self.dtype)
        log_proposal, alive = np.zeros(cut.shape), np.ones(cut.shape, dtype=bool)
        laws = stream.start(n)
        for t in range(length):
            law = concrete(laws)
            assert law is not None
            token = np.where(alive, tokens[..., t], 0)
            drawn = np.nonzero(alive & (t >= cut))
            if len(drawn[0]):
                token[drawn] = _inverse(law[drawn], rng)
            chosen = np.take_along_axis(law, token[..., None], axis=-1)[..., 0]
            log_proposal = log_proposal + np.where(alive, chosen, 0.0)
            out[..., t] = np.where(alive, token, stream.pad)
            alive = alive & ~np.isin(token, stream.eos)
            if t + 1 == length or not np.any(alive):
                break
            laws = stream.advance(like(token, laws))
        return out, log_proposal


class WholeEdits(NamedTuple):
    """Edits of integer arrays without an order: what is not substituted is drawn as a whole."""

    source: Source
    original: Any
    vocabulary_size: int
    event: tuple[int, ...]

    @property
    def calls(self) -> int:
        """A draw, its log q, and the target's pass."""
        return 3

    def edit(self, tokens: np.ndarray, substituted: np.ndarray, rng: np.random.Generator) -> Edited:
        """As `Edits`."""
        other = substitute(tokens, self.vocabulary_size, (), rng)
        drawn = propose(self.source, len(tokens)).outcomes.reshape(tokens.shape)
        new = np.where(substituted[..., None], other, drawn)
        shape = (*tokens.shape[:2], *self.event)
        given = like(with_contexts(new.reshape(shape), self.source.shape), self.original)
        log_proposal = flat_contexts(self.source.log_proposal(given), len(self.source.shape))
        return new, log_proposal, np.zeros(log_proposal.shape)


def _inverse(laws: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One token of each row of log-probabilities (rows, V)."""
    cumulative = np.cumsum(np.exp(laws.astype(np.float64)), axis=-1)
    total = cumulative[:, -1:]
    # Below the total whatever the rounding, so that no token of probability 0 is found.
    level = np.minimum(rng.random((len(laws), 1)) * total, np.nextafter(total, -math.inf))
    return (cumulative <= level).sum(-1)
