"""Local-edit Metropolis: change one token, or write the end of the sequence anew."""

import math
from typing import Any, NamedTuple

import numpy as np

from infer_align._arguments import count, number
from infer_align.samplers._accept import Accepted, accept, report_short
from infer_align.samplers._chains import Record, check_lengths
from infer_align.samplers._edits import Edits, TokenEdits, WholeEdits
from infer_align.samplers._independence import rises
from infer_align.samplers._outcomes import check_log_target, like, take, with_contexts
from infer_align.samplers._source import Source
from infer_align.targets import WeightedSample

__all__ = ["local_metropolis"]


def local_metropolis(
    source: Source,
    n: int,
    steps: int,
    *,
    substitution: float = 0.5,
    keep: int = 1,
    thin: int = 1,
    vocabulary_size: int | None = None,
    max_calls: int = 100_000,
) -> WeightedSample:
    r"""Metropolis-Hastings over token sequences by local edits.

    Each step of a chain is one of two moves, both reversible with respect to p:

    - substitution: a uniform position among those before the end gets another token, uniform over
      all that do not end a sequence; accepted with probability :math:`\min(1, P(y')/P(y))`;
    - regeneration: from a cut :math:`t < |y|`, uniform, the rest is drawn anew from
      :math:`q(\cdot | y_{<t})`; accepted with probability

    .. math:: \min\left(1, \frac{P(y')\, q(y)\, |y|}{P(y)\, q(y')\, |y'|}\right)

    A sequence's length counts its EOS, and only regeneration changes it. A proposal over integers
    or integer arrays that is not a token sequence is regenerated as a whole. Mixtures of local
    and global moves for energy-based language models: Eikema et al. 2022, arXiv 2112.05702.

    Parameters
    ----------
    source : Source
    n : int
        Chains in each context. They start at independent draws of q that the target accepts.
    steps : int
        Moves of each.
    substitution : float
        Probability of the first kind of move. With 1 a sequence keeps its length, and a hard
        constraint may cut the target into parts that no substitution connects.
    keep : int
        States kept of each chain, the last one first.
    thin : int
        Steps between kept states.
    vocabulary_size : int, optional
        Of integers that are not token sequences; a token sequence knows its own.
    max_calls : int
        Most proposals per context to find the starts among. With fewer starts than chains several
        chains start at the same outcome, and are one cluster.

    Returns
    -------
    WeightedSample
        ``n * keep`` outcomes of equal weight, ``-inf`` in a context where no start was found (a
        warning is given). The evidence is that of the search for the starts; ``calls`` counts
        drawing and scoring. ``method`` has the acceptance rate of the moves; how far the chains
        still are from the target is not known (``total_variation`` is NaN).

    Raises
    ------
    ValueError
        For outcomes that are not integers, or not below ``vocabulary_size``.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
    >>> from infer_align import tilt
    >>> from infer_align.jax import source
    >>> from infer_align.samplers import local_metropolis
    >>> letters = dist.Categorical(probs=jnp.array([0.5, 0.3, 0.2])).expand([4]).to_event(1)
    >>> target = tilt(letters, lambda y: 1.0 * (y == 2).sum(-1), beta=1.0)
    >>> sample = local_metropolis(source(jax.random.key(0), target), 500, 20)
    >>> abs(float((sample.outcomes == 2).mean()) - 0.40) < 0.06     # 0.2 e / (0.8 + 0.2 e)
    True
    """
    check_lengths(source, n, steps, keep, thin)
    if not 0 <= number("substitution", substitution, need="a probability") <= 1:
        raise ValueError(f"substitution is a probability, got {substitution}")
    possible = lambda log_weights: np.where(log_weights > -math.inf, 0.0, -math.inf)
    starts = accept(source, n, possible, max_calls)
    edits = _edits(source, starts.outcomes, starts.original, vocabulary_size)
    rows = np.arange(n)[:, None] % np.maximum(starts.counts, 1)
    chain = Chain(source, edits, starts.original, substitution, starts.outcomes.shape[2:])
    state, record = chain.start(starts, rows), Record(steps, keep, thin)
    for step in range(1, steps + 1):
        state, moved = chain.step(state)
        record.add(step, chain.shaped(state.tokens), state.log_target, moved)
    calls = starts.calls + n * steps * edits.calls
    method = f"local Metropolis, {n} chains of {steps} steps, acceptance {record.acceptance:.3g}"
    return _finished(source, record, starts, rows, calls, method)


class State(NamedTuple):
    """Where n chains in each of C contexts are."""

    tokens: np.ndarray
    """(n, C, T)."""
    log_target: np.ndarray
    log_proposal: np.ndarray


class Chain(NamedTuple):
    """The transition of all chains at once."""

    source: Source
    edits: Edits
    original: Any
    """Outcomes as the source gives them."""
    substitution: float
    event: tuple[int, ...]

    def start(self, starts: Accepted, rows: np.ndarray) -> State:
        """The accepted proposals, some of them repeated."""
        log_target = take(starts.log_target, rows)
        log_weights = take(starts.log_weights, rows)
        found = log_weights > -math.inf
        log_proposal = np.where(found, np.where(found, log_target, 0.0) - log_weights, -math.inf)
        tokens = take(starts.outcomes, rows).reshape(*rows.shape, -1)
        return State(tokens, np.where(found, log_target, -math.inf), log_proposal)

    def step(self, state: State) -> tuple[State, np.ndarray]:
        """One move of every chain, and which were accepted."""
        rng = self.source.rng
        substituted = rng.random(state.log_target.shape) < self.substitution
        tokens, log_proposal, log_lengths = self.edits.edit(state.tokens, substituted, rng)
        flat = self.source.log_target(self.given(tokens))
        check_log_target(flat, self.source)
        log_target = flat.reshape(state.log_target.shape)
        # q(y)/q(y′): where q(y) = 0 the way back could not be drawn.
        drawn = (state.log_proposal > -math.inf) & (log_proposal > -math.inf)
        back = np.where(drawn, np.where(drawn, state.log_proposal, 0.0) - log_proposal, -math.inf)
        hastings = np.where(substituted, 0.0, back + log_lengths)
        moved = rises(log_target + hastings, state.log_target, rng)
        moved &= state.log_target > -math.inf  # a chain without a start stays
        new = State(
            np.where(moved[..., None], tokens, state.tokens),
            np.where(moved, log_target, state.log_target),
            np.where(moved, log_proposal, state.log_proposal),
        )
        return new, moved

    def shaped(self, tokens: np.ndarray) -> np.ndarray:
        """(n, C, T) as (n, C, ...)."""
        return tokens.reshape(*tokens.shape[:2], *self.event)

    def given(self, tokens: np.ndarray) -> Any:
        """(n, C, T) as the source takes outcomes."""
        return like(with_contexts(self.shaped(tokens), self.source.shape), self.original)


def _edits(source: Source, host: Any, original: Any, vocabulary_size: int | None) -> Edits:
    """Token by token where the proposal can do that; else as a whole."""
    if isinstance(host, dict) or not np.issubdtype(host.dtype, np.integer):
        got = f"a dict of {sorted(host)}" if isinstance(host, dict) else f"of {host.dtype}"
        raise ValueError(
            f"local edits need outcomes that are tokens, and those of {source.name!r} are {got}; "
            "sample with independence_metropolis"
        )
    try:
        stream = source.tokens()
    except ValueError as error:
        if vocabulary_size is None:
            raise ValueError(
                f"the proposal of {source.name!r} cannot be drawn token by token ({error}); give "
                "vocabulary_size, so that integers can be substituted"
            ) from error
        vocabulary_size = count("vocabulary_size", vocabulary_size)
        if not 0 <= int(host.min()) <= int(host.max()) < vocabulary_size:
            raise ValueError(
                f"the outcomes of {source.name!r} hold integers from {int(host.min())} to "
                f"{int(host.max())}, and vocabulary_size is {vocabulary_size}; they must lie in 0 "
                "to vocabulary_size - 1"
            ) from error
        return WholeEdits(source, original, vocabulary_size, host.shape[2:])
    if vocabulary_size not in (None, stream.vocabulary_size):
        raise ValueError(
            f"vocabulary_size is {vocabulary_size} and the proposal of {source.name!r} has "
            f"{stream.vocabulary_size} tokens; leave it out"
        )
    return TokenEdits(stream, host.dtype)


def _finished(
    source: Source, record: Record, starts: Accepted, rows: np.ndarray, calls: int, method: str
) -> WeightedSample:
    n = len(rows)
    remedy = (
        "chains start at the same outcome, and without one have log-weight -inf. Raise max_calls, "
        "or use a proposal closer to the target"
    )
    what = "starts of local Metropolis"
    note = report_short(starts.counts, n, starts.calls, source, what=what, remedy=remedy)
    method = f"{method}; starts {note}" if note else method
    unknown = math.nan
    return record.sample(source, starts.original, rows, starts.evidence, calls, method, unknown)
