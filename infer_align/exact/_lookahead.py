r"""What a target expects of the rest of a sequence, given how it begins.

.. math:: ψ_t(y_{1:t}) = E_{\mathrm{prior}}[e^{φ(y)} | y_{1:t}]

The conditional law of a target is prior(y_{t+1} | y_{1:t})·ψ_{t+1}/ψ_t: with these functions for
twists every particle of `infer_align.samplers.smc` has the same weight.
"""

import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from infer_align._numerics import concrete
from infer_align.exact._messages import solve_chain
from infer_align.exact._probe import pair_terms
from infer_align.exact._problem import Problem, Unfit, problem_of
from infer_align.exact._solve import _by_state, _log_prior, _times, _Weights
from infer_align.spaces.outcomes import MAX_ENTRIES, repeated
from infer_align.spaces.space import Space


@runtime_checkable
class Lookahead(Protocol):
    """Log ψ of prefixes of token ids, NumPy float64; a twist of `infer_align.samplers.smc`."""

    def log_psi(self, prefix: Any) -> np.ndarray:
        """Of prefixes (n, C, t), shape (n, C)."""
        ...

    def next_log_psi(self, prefix: Any) -> np.ndarray:
        """Of prefixes (n, C, t) with each next token, shape (n, C, V)."""
        ...


def lookahead(target: Any, *contexts: Any) -> Lookahead:
    """The exact look-ahead functions of a declared target, for every prefix.

    Sequences are listed where there are few; else the prior must be Markov or of independent
    tokens and the potential a sum over neighbouring pairs, times automata, as for `by_messages`.
    Read for a potential of counts: `infer_align.exact.selection.autoregressive`.

    Parameters
    ----------
    target : Target, or Pyro or NumPyro program
        Over token sequences.
    *contexts : Any
        What it is conditioned on; several contexts only where sequences are listed.

    Returns
    -------
    Lookahead
        Its contexts are flattened to one axis; an unconditional one serves any number.

    Raises
    ------
    ValueError
        If neither fits, with the reasons; if the target accepts no sequence.

    Examples
    --------
    >>> import numpy as np, jax.numpy as jnp, numpyro.distributions as dist
    >>> from infer_align import exact, product
    >>> prior = dist.Categorical(jnp.array([0.5, 0.3, 0.2])).expand([13]).to_event(1)
    >>> some_two = exact.Automaton([[0, 0, 1], [1, 1, 1]], [False, True])  # a 2 occurs
    >>> ahead = exact.lookahead(product(prior, some_two))
    >>> prefix = np.zeros((1, 1, 12), int)  # one more token, and no 2 yet
    >>> np.exp(ahead.next_log_psi(prefix)).round(4).tolist()
    [[[0.0, 0.0, 1.0]]]
    """
    problem = problem_of(target, contexts)
    refused = []
    for engine in (_listed, _chain):
        try:
            return engine(problem)
        except Unfit as reason:
            refused.append(str(reason))
    raise ValueError(
        f"target {problem.target.name!r} has no exact look-ahead here. Listing: {refused[0]}. "
        f"Messages: {refused[1]}. Give smc a twist of your own (samplers.next_twist), or a learnt "
        "one (fit_twist)"
    )


def _at_last(next_log_psi: np.ndarray, last: np.ndarray) -> np.ndarray:
    return np.take_along_axis(next_log_psi, last[..., None], axis=-1)[..., 0]


def _tokens(prefix: Any, size: int) -> np.ndarray:
    """Known token ids; padding, which is never read, as some token."""
    known = concrete(prefix)
    if known is None:
        raise ValueError("look-ahead functions read token ids, which are unknown inside jax.jit")
    return np.clip(known, 0, size - 1)


class _Listed:
    """By tables (V^t, C) over the prefixes of each length, 0 for an empty context axis."""

    def __init__(self, size: int, tables: list[np.ndarray]) -> None:
        self._size, self._tables = size, tables

    def log_psi(self, prefix: Any) -> np.ndarray:
        known = _tokens(prefix, self._size)
        return _at_last(self.next_log_psi(known[..., :-1]), known[..., -1])

    def next_log_psi(self, prefix: Any) -> np.ndarray:
        known = _tokens(prefix, self._size)
        t = known.shape[-1]
        code = known @ self._size ** np.arange(t)[::-1]
        rows = code[..., None] * self._size + np.arange(self._size)
        table = self._tables[t]
        context = np.arange(code.shape[1]) if table.shape[1] > 1 else np.zeros(1, dtype=int)
        return table[rows, context[:, None]]


def _listed(problem: Problem) -> Lookahead:
    model = problem.model
    if model.count() * model.length > MAX_ENTRIES:
        raise Unfit(f"{model.count():.3g} sequences of {model.length} tokens")
    distribution = problem.target.given(*problem.contexts)
    size, shape = model.vocabulary_size, tuple(distribution.batch_shape)
    tokens = Space.sequences(size, model.length, eos=model.eos or None, pad=model.pad).outcomes
    y = repeated(model.outcomes(tokens, problem.like), shape)
    log_p = _flat(problem.target.log_density(y, *problem.contexts))
    log_q = _flat(distribution.log_prob(y))
    if not (log_p > -math.inf).any():
        raise ValueError(f"target {problem.target.name!r} accepts no sequence, so it has no law")
    code, alive = np.zeros(len(tokens), dtype=np.int64), np.ones(len(tokens), dtype=bool)
    tables = []
    for t in range(model.length):
        token = np.clip(tokens[:, t], 0, size - 1)
        code = code * size + token
        rows = np.flatnonzero(alive)
        whole = (size ** (t + 1), log_p.shape[1])
        above, below = (_log_sums(x[rows], code[rows], whole) for x in (log_p, log_q))
        possible = below > -math.inf
        tables.append(np.where(possible, above - np.where(possible, below, 0.0), -math.inf))
        alive = alive & ~np.isin(token, model.eos)
    return _Listed(size, tables)


def _flat(log_values: Any) -> np.ndarray:
    known = np.asarray(concrete(log_values), dtype=np.float64)
    return known.reshape(len(known), -1)


def _log_sums(log_values: np.ndarray, code: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """logsumexp of rows (N, C) by code, shape (V^t, C)."""
    out = np.full(shape, -math.inf)
    np.logaddexp.at(out, code, log_values)
    return out


class _Tables(NamedTuple):
    """A chain whose state is known from the tokens; state −1 is impossible."""

    first_state: np.ndarray
    """(V,)."""
    next_state: np.ndarray
    """(S, V)."""
    first: np.ndarray
    """Potential of the first token, (V,)."""
    edges: np.ndarray
    """Potential of each next token, (m − 1, S, V)."""
    backward: np.ndarray
    """Log-messages (m, S + 1), the last for the state −1."""


class _Chain:
    """By backward messages."""

    def __init__(self, tables: _Tables) -> None:
        self._tables = tables

    def log_psi(self, prefix: Any) -> np.ndarray:
        known = _tokens(prefix, len(self._tables.first))
        return _at_last(self.next_log_psi(known[..., :-1]), known[..., -1])

    def next_log_psi(self, prefix: Any) -> np.ndarray:
        tables = self._tables
        known = _tokens(prefix, len(tables.first))
        shape, t = known.shape[:-1], known.shape[-1]
        if t == 0:
            own = tables.first + tables.backward[0][tables.first_state]
            return np.broadcast_to(own, (*shape, len(own)))
        state, total = tables.first_state[known[..., 0]], tables.first[known[..., 0]]
        for i in range(1, t):
            total = total + tables.edges[i - 1][state, known[..., i]]
            state = tables.next_state[state, known[..., i]]
        ahead = tables.edges[t - 1][state] + tables.backward[t][tables.next_state[state]]
        return np.where(state[..., None] >= 0, total[..., None] + ahead, -math.inf)


def _chain(problem: Problem) -> Lookahead:
    problem.single()
    model = problem.model
    if model.log_emission is not None:
        raise Unfit("the states of a hidden Markov model are not known from its tokens")
    log_first, log_edges, tokens = _log_prior(problem)
    terms = pair_terms(problem)
    known = (log_first, log_edges, *_by_state(terms, model, tokens))
    tables = [np.asarray(concrete(x), dtype=np.float64) for x in known]
    weights = _Weights(tables[0], tables[1], tables[2], tables[3], np.zeros_like(tables[0]))
    for automaton in problem.automata:
        weights, tokens = _times(weights, tokens, automaton)
    solved = solve_chain(
        weights.log_first + weights.first, weights.log_edges + weights.edges, weights.last,
        model.length,
    )  # fmt: skip
    if float(solved.log_z) == -math.inf:
        raise ValueError(f"target {problem.target.name!r} accepts no sequence, so it has no law")
    return _Chain(_by_token(weights, tokens, solved.log_backward, model))


def _by_token(weights: _Weights, tokens: np.ndarray, backward: np.ndarray, model: Any) -> _Tables:
    log_first, log_edges, first, edges, _ = weights
    emits = tokens[:, None] == np.arange(model.vocabulary_size)  # (S, V)
    begins = emits & (log_first > -math.inf)[:, None]
    possible = (log_edges > -math.inf).any(axis=0) if len(log_edges) else log_edges.any(axis=0)
    follows = possible[:, :, None] & emits  # (S, S, V): at most one state of each token
    first_state = np.where(begins.any(axis=0), begins.argmax(axis=0), -1)
    next_state = np.where(follows.any(axis=1), follows.argmax(axis=1), -1)
    rows = np.arange(len(tokens))[:, None]
    gone = np.full((len(backward), 1), -math.inf)
    return _Tables(
        first_state,
        next_state,
        np.where(first_state >= 0, first[first_state], -math.inf),
        np.where(next_state >= 0, edges[:, rows, next_state], -math.inf),
        np.concatenate([backward, gone], axis=1),
    )
