r"""Markov models, hidden Markov models and finite automata, with additive rewards.

A `Chain` has states i with transition probabilities P and rewards g on its edges. Its tilts have
kernels that look ahead by backward messages; as sequences grow, the Perron root ρ of
M_θ(i, j) = P_ij e^{θ g_ij} rules,

.. math:: Λ(θ) = \log ρ(M_θ), \qquad φ(j|i) → \frac{M_θ(i,j)\, v_j}{ρ\, v_i}, \qquad
          \frac1m KL(φ‖P) → θΛ'(θ) - Λ(θ),

and all of `infer_align.exact.tilts` and `asymptotics <infer_align.exact.asymptotics>` hold
with this Λ. Hidden Markov models are chains over (hidden state, token); an `Automaton` over tokens
multiplies with a chain into one over (state, its own state), with what it rejects as −inf.
"""

import math
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from infer_align._arguments import number, reals
from infer_align._numerics import Array, check_defined, concrete, namespace
from infer_align.exact._automaton import Automaton
from infer_align.exact._build import whole_length
from infer_align.exact._chain_law import chain_law
from infer_align.exact._law import RewardLaw, check_beta, check_normalised
from infer_align.exact._messages import Messages, solve_chain
from infer_align.exact._perron import PerronFamily
from infer_align.exact._rewards import ExactRewards, combine, exact_rewards

__all__ = ["Automaton", "Chain", "ChainSolution", "PerronFamily", "renyi_cross_entropy_rate"]


class ChainSolution(NamedTuple):
    """A tilted chain of finite length; see `Chain.solve`. Totals over the sequence, in nats."""

    log_z: Any
    """log E_prior[accepted · exp(reward/beta)]."""
    expected_reward: Any
    """E[reward] under the tilt."""
    kl_to_prior: Any
    """KL(tilt‖prior) = E[reward]/beta − log Z."""
    log_initial: Any
    """Of the first state, shape (S,)."""
    log_kernels: Any
    """Transitions of the tilt, which look ahead: shape (m − 1, S, S)."""
    value: Any
    """Soft value function: beta·log of what is to come from each state, shape (m, S)."""
    log_marginals: Any
    """Of each state at each position, shape (m, S)."""


@dataclass(frozen=True, eq=False)
class Chain:
    r"""A Markov model of sequences of m tokens, with rewards on its states or edges.

    .. math:: p(y) = \mathrm{initial}(y_1) \prod_t P(y_t, y_{t+1}), \qquad
              r(y) = g_1(y_1) + \sum_t g(y_t, y_{t+1})

    Parameters
    ----------
    initial : array, shape (S,)
        Probabilities of the first state.
    transition : array, shape (S, S)
        Row i has the probabilities of the state after i.
    rewards : sequence, shape (S,) or (S, S), or ExactRewards
        Of each state wherever it occurs, the first position included; or of each edge, row to
        column. Exact, as in `reward_law`.
    length : int
        Number of tokens m, >= 1.
    initial_rewards : sequence, shape (S,), optional
        Of the first state, with edge rewards. Default: 0.
    tokens : sequence of S ints, optional
        The token that each state emits. Default: the state itself.
    log_final : array, shape (S,), optional
        Log-weight of ending in each state: 0, or −inf where sequences are rejected.

    Raises
    ------
    ValueError
        For shapes that do not fit, or rows that are not probabilities.

    Examples
    --------
    >>> from infer_align.exact import Chain, best_of_n
    >>> chain = Chain([0.5, 0.5], [[0.9, 0.1], [0.4, 0.6]], [0, 1], 20)
    >>> round(float(chain.solve(beta=2.0).expected_reward), 4)
    11.7462
    >>> law = chain.reward_law()
    >>> round(float(law.expected_reward(best_of_n(law, 16))), 4)
    10.8759
    """

    initial: Any
    transition: Any
    rewards: Any
    length: int
    initial_rewards: Any = None
    tokens: Any = None
    log_final: Any = None

    def __post_init__(self) -> None:
        if not hasattr(self.initial, "shape"):
            object.__setattr__(self, "initial", reals("initial", self.initial))
        final = np.zeros(self.initial.shape) if self.log_final is None else self.log_final
        initial, transition, final = _alike(self.initial, self.transition, final)
        states = initial.shape[0] if len(initial.shape) == 1 else 0
        if not states or tuple(transition.shape) != (states, states):
            raise ValueError(
                f"a chain of S states needs an initial law of shape (S,) and transitions (S, S); "
                f"got {tuple(initial.shape)} and {tuple(transition.shape)}"
            )
        check_normalised(initial, "initial probabilities")
        for i in range(states):
            check_normalised(transition[i], f"transition probabilities from state {i}")
        tokens = np.arange(states) if self.tokens is None else np.asarray(self.tokens)
        for name, value in (
            ("initial", initial), ("transition", transition), ("tokens", tokens),
            ("log_final", final), ("length", whole_length(self.length)),
        ):  # fmt: skip
            object.__setattr__(self, name, value)
        if tokens.shape != (states,) or tuple(final.shape) != (states,):
            raise ValueError(f"tokens and log_final need one entry for each of the {states} states")
        self._exact  # noqa: B018  (its shapes are checked now)

    @classmethod
    def hidden(
        cls, initial: Any, transition: Any, emission: Any, rewards: Any, length: int
    ) -> "Chain":
        """A hidden Markov model, as a chain over pairs of a hidden state and a token.

        Parameters
        ----------
        initial : array, shape (H,)
        transition : array, shape (H, H)
        emission : array, shape (H, K)
            Row h has the probabilities of the tokens in hidden state h.
        rewards : sequence, shape (K,) or (K, K)
            Of each token, or of each pair of neighbours: a function of the tokens alone, so that
            tilts of the pairs are tilts of the tokens.
        length : int

        Returns
        -------
        Chain
            State h·K + k is hidden state h with token k.

        Examples
        --------
        >>> from infer_align.exact import Chain
        >>> chain = Chain.hidden(
        ...     [0.6, 0.4], [[0.9, 0.1], [0.2, 0.8]], [[0.7, 0.3], [0.1, 0.9]], [0, 1], 8
        ... )
        >>> round(float(chain.solve(beta=1.0).log_z), 6)
        5.80606
        """
        initial, transition, emission = _alike(initial, transition, emission)
        xp = namespace(initial, transition, emission)
        hidden, letters = emission.shape
        if tuple(transition.shape) != (hidden, hidden) or tuple(initial.shape) != (hidden,):
            raise ValueError(
                f"emissions of shape {tuple(emission.shape)} need {hidden} hidden states; got an "
                f"initial law {tuple(initial.shape)} and transitions {tuple(transition.shape)}"
            )
        joint = hidden * letters
        first = xp.reshape(initial[:, None] * emission, (joint,))
        step = xp.reshape(transition[:, :, None] * emission[None, :, :], (hidden, joint))
        step = xp.reshape(
            xp.broadcast_to(step[:, None, :], (hidden, letters, joint)), (joint, joint)
        )
        exact = _exact_pairs(rewards, letters)
        tokens = np.tile(np.arange(letters), hidden)
        pairs = [int(a) * letters + int(b) for a in tokens for b in tokens]
        first_rewards = exact.take([letters * letters + int(a) for a in tokens])
        return cls(first, step, exact.take(pairs), length, first_rewards, tokens)

    @property
    def states(self) -> int:
        """Number of states S."""
        return self.initial.shape[0]

    @cached_property
    def _exact(self) -> ExactRewards:
        """Rewards of the S·S edges, then of the S first states, in common units."""
        exact = _exact_pairs(self.rewards, self.states)
        if self.initial_rewards is None:
            return exact
        first = exact_rewards(self.initial_rewards)
        edges = exact.take(range(self.states**2))
        if len(first) != self.states:
            raise ValueError(f"initial_rewards needs {self.states} entries, got {len(first)}")
        return _joined(edges, first)

    @cached_property
    def _values(self) -> tuple[np.ndarray, np.ndarray]:
        """Rewards of the edges (S, S) and of the first state (S,), as floats."""
        values = self._exact.values()
        edges = self.states**2
        return values[:edges].reshape(self.states, self.states), values[edges:]

    def _logs(self) -> tuple[Array, Array, Array]:
        """Log initial, log transitions and log final weights, in the library of the arrays."""
        return _safe_log(self.initial), _safe_log(self.transition), self.log_final

    def solve(self, beta: Any = math.inf) -> ChainSolution:
        r"""The tilt at a temperature, exactly, at this length: kernels that look ahead.

        .. math:: b_m = 1, \quad b_t(i) = \sum_j P_{ij} e^{g_{ij}/β} b_{t+1}(j), \quad
                  φ(j|i, t) = P_{ij} e^{g_{ij}/β} b_{t+1}(j)/b_t(i), \quad V_t = β\log b_t

        Parameters
        ----------
        beta : float
            Temperature, > 0; inf is the prior (given what is accepted).

        Returns
        -------
        ChainSolution

        Raises
        ------
        ValueError
            If nothing is accepted, or beta is not positive.
        """
        theta = 0.0 if isinstance(beta, float) and math.isinf(beta) else 1 / check_beta(beta)
        first, edges, last = self._logs()
        xp = namespace(first, edges)
        edge_top, first_top = (float(x.max()) for x in self._values)
        edge_rewards, first_rewards = (xp.asarray(x - x.max()) for x in self._values)
        messages: Messages = solve_chain(
            first + theta * first_rewards, edges + theta * edge_rewards, last, self.length
        )
        known = concrete(messages.log_z)
        if known is not None and known == -math.inf:
            raise ValueError("the chain accepts no sequence of this length, so it has no law")
        reward = messages.expectation(first_rewards, edge_rewards)
        offset = first_top + (self.length - 1) * edge_top
        ahead = xp.asarray(edge_top * np.arange(self.length - 1.0, -1.0, -1.0)[:, None])
        backward = messages.log_backward
        return ChainSolution(
            messages.log_z + theta * offset, reward + offset, theta * reward - messages.log_z,
            messages.log_initial, messages.log_kernels,
            backward / theta + ahead if theta else backward, messages.log_marginals(),
        )  # fmt: skip

    @property
    def log_accept(self) -> Any:
        """log P(accepted) under the prior; 0 without a constraint."""
        return solve_chain(*self._logs(), self.length).log_z

    def rate(self) -> PerronFamily:
        """The family of tilts per token, in the limit of long sequences.

        Returns
        -------
        PerronFamily
            For `infer_align.exact.tilts` and `infer_align.exact.asymptotics`.

        Raises
        ------
        ValueError
            If the chain is not irreducible.

        Examples
        --------
        >>> from infer_align.exact import Chain
        >>> from infer_align.exact.tilts import frontier
        >>> rate = Chain([0.5, 0.5], [[0.9, 0.1], [0.4, 0.6]], [0, 1], 1).rate()
        >>> round(float(frontier(rate, 0.1).reward), 6)
        0.573232
        """
        units = [unit.value() for unit in self._exact.units]
        edges = [combine(key, units) for key in self._exact.keys[: self.states**2]]
        exact = np.array(edges, dtype=object).reshape(self.states, self.states)
        return PerronFamily(_plain(_safe_log(self.transition)), self._values[0], exact)

    def reward_law(self) -> RewardLaw:
        """The law of the total reward, given that the sequence is accepted.

        On a lattice of rewards by tilted FFT of matrix powers, else by listing pairs of a state and
        a partial reward.

        Returns
        -------
        RewardLaw
            Best-of-n and all other policies on levels apply to it.

        Raises
        ------
        ValueError
            If there are too many levels for either, or nothing is accepted; inside ``jax.jit``.
        """
        first, edges, last = (_plain(x) for x in self._logs())
        return chain_law(first, edges, last, self._exact, self.tokens, self.length)

    def constrain(self, automaton: Automaton) -> "Chain":
        """The chain times an automaton over its tokens: sequences that it rejects get weight 0.

        Parameters
        ----------
        automaton : Automaton

        Returns
        -------
        Chain
            Over the reachable pairs of a state and a state of the automaton. The prior is still the
            chain: `solve` and `log_accept` say what the constraint costs.

        Raises
        ------
        ValueError
            If a token has no column in the automaton.

        Examples
        --------
        >>> import math
        >>> from infer_align.exact import Automaton, Chain
        >>> chain = Chain([0.5, 0.5], [[0.9, 0.1], [0.4, 0.6]], [0, 1], 3)
        >>> some_one = Automaton([[0, 1], [1, 1]], [False, True])
        >>> round(math.exp(chain.constrain(some_one).log_accept), 6)  # 1 − 0.5 · 0.9 · 0.9
        0.595
        """
        table = automaton.by_token(self.tokens)  # of the next state, by state of the chain
        initial, transition = _plain(self.initial), _plain(self.transition)
        start = [(i, int(table[automaton.start, i])) for i in range(self.states)]
        pairs = {pair: None for pair in start if initial[pair[0]] > 0}
        stack = list(pairs)
        while stack:
            i, q = stack.pop()
            for j in np.flatnonzero(transition[i] > 0):
                pair = (int(j), int(table[q, j]))
                if pair not in pairs:
                    pairs[pair] = None
                    stack.append(pair)
        known = sorted(pairs)
        state = np.array([i for i, _ in known])
        inner = np.array([q for _, q in known])
        follows = table[inner][:, state] == inner[None, :]
        begins = np.array([pair == start[pair[0]] for pair in known])
        n, edges = self.states, self._exact
        final = _plain(self.log_final)[state]
        return Chain(
            np.where(begins, initial[state], 0.0),
            np.where(follows, transition[state][:, state], 0.0),
            edges.take([int(i) * n + int(j) for i in state for j in state]), self.length,
            edges.take([n * n + int(i) for i in state]), self.tokens[state],
            np.where(automaton.accepting[inner], final, -math.inf),
        )  # fmt: skip

    def with_length(self, length: int) -> "Chain":
        """The same chain with another number of tokens.

        Parameters
        ----------
        length : int
        """
        return replace(self, length=length)


def renyi_cross_entropy_rate(log_p: Any, log_q: Any, order: float | int) -> float:
    r"""Rényi cross entropy per token of a Markov chain p to a chain q.

    .. math:: \frac{1}{1-α} \log ρ(P ∘ Q^{α-1})

    Parameters
    ----------
    log_p, log_q : array, shape (S, S)
        Log transition probabilities; p irreducible.
    order : float
        α, any real number but ±inf; 1 is −Σ π_i P_ij log Q_ij.

    Returns
    -------
    float
        inf where p has an edge that q has not, for orders up to 1.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.exact.chains import renyi_cross_entropy_rate
    >>> p, q = np.log([[0.9, 0.1], [0.4, 0.6]]), np.log([[0.5, 0.5], [0.2, 0.8]])
    >>> [round(renyi_cross_entropy_rate(p, q, a), 6) for a in (0, 1, 2)]
    [0.740491, 0.71005, 0.634878]
    """
    from scipy.sparse.csgraph import connected_components

    order = number("order", order)
    log_p, log_q = reals("log_p", log_p), reals("log_q", log_q)
    if log_p.ndim != 2 or log_p.shape != log_q.shape or log_p.shape[0] != log_p.shape[1]:
        raise ValueError(
            f"log_p and log_q are transitions (S, S) over the same states, got shapes "
            f"{log_p.shape} and {log_q.shape}"
        )
    check_defined(log_p, "log_p")
    check_defined(log_q, "log_q")
    missed = (log_p > -math.inf) & (log_q == -math.inf)
    if missed.any() and order <= 1:
        return math.inf
    kept = np.where(missed, -math.inf, log_p)
    cost = np.where(kept > -math.inf, log_q, 0.0)
    if order == 1:
        return -_perron(kept, cost).cumulants(0)[1]
    # Without the edges that q misses, the fastest of the classes that are left decides.
    _, labels = connected_components(kept > -math.inf, connection="strong")
    classes = [np.flatnonzero(labels == c) for c in range(labels.max() + 1)]
    roots = [
        _perron(kept[np.ix_(c, c)], cost[np.ix_(c, c)]).cumulants(order - 1)[0]
        for c in classes
        if len(c) > 1 or kept[c[0], c[0]] > -math.inf
    ]
    return max(roots, default=-math.inf) / (1 - order)


def _perron(log_transition: np.ndarray, rewards: np.ndarray) -> PerronFamily:
    exact = np.array([Decimal(x) for x in rewards.ravel().tolist()], dtype=object)
    return PerronFamily(log_transition, rewards, exact.reshape(rewards.shape))


def _alike(*values: Any) -> list[Array]:
    """Arrays of one library: that of the given arrays that are not NumPy's, if there are any."""
    theirs = [x for x in values if hasattr(x, "shape") and not isinstance(x, np.ndarray)]
    if not theirs:
        return [reals("a law of the chain", x) for x in values]
    xp, like = namespace(*theirs), theirs[0]
    own = {id(x) for x in theirs}
    return [
        x if id(x) in own else xp.asarray(reals("a law of the chain", x), dtype=like.dtype)
        for x in values
    ]


def _plain(x: Array) -> np.ndarray:
    known = concrete(x)
    if known is None:
        raise ValueError("this needs the chain's numbers, not tracers; compute it outside jax.jit")
    return known


def _safe_log(p: Array) -> Array:
    """log p, −inf where p is 0, without a NaN in the gradient."""
    xp = namespace(p)
    return xp.where(p > 0, xp.log(xp.where(p > 0, p, 1.0)), -math.inf)


def _exact_pairs(rewards: Any, states: int) -> ExactRewards:
    """Rewards of the S·S edges, then of the S first states."""
    if isinstance(rewards, ExactRewards):
        exact, by_state = rewards, len(rewards) == states
        shape: tuple[int, ...] = (len(rewards),)
    else:
        table = np.array(rewards, dtype=object)
        exact, shape = exact_rewards(table.ravel().tolist()), table.shape
        by_state = shape == (states,)
    if not by_state and len(exact) != states**2:
        raise ValueError(
            f"rewards of shape {shape} for {states} states; give ({states},), one a state, or "
            f"({states}, {states}), one an edge"
        )
    if by_state:
        edges = [exact.keys[j] for _ in range(states) for j in range(states)]
        return ExactRewards((*edges, *exact.keys), exact.units)
    nothing = (0,) * len(exact.units)
    return ExactRewards((*exact.keys, *(nothing,) * states), exact.units)


def _joined(edges: ExactRewards, first: ExactRewards) -> ExactRewards:
    """Two lists of rewards in common units."""
    if edges.units == first.units:
        return ExactRewards(edges.keys + first.keys, edges.units)
    if any(unit.base for unit in edges.units + first.units):
        raise ValueError("rewards and initial_rewards must both be numbers, or logs of one list")
    return exact_rewards(
        [key[0] * exact.units[0].scale for exact in (edges, first) for key in exact.keys]
    )
