"""`solve`: the exact answer to a declared target, by the engine that fits its structure."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from infer_align._numerics import Array, greatest, logsumexp, namespace, normalised
from infer_align.exact._automaton import Automaton
from infer_align.exact._messages import Messages, solve_chain
from infer_align.exact._probe import Terms, pair_terms, position_terms, shown
from infer_align.exact._problem import Problem, Unfit, law_of, problem_of
from infer_align.exact._sites import looked_up, marginal, solve_sites
from infer_align.exact._types import compositions, log_factorials, number_of_types
from infer_align.programs import as_target
from infer_align.spaces.outcomes import MAX_ENTRIES
from infer_align.spaces.sequences import SequenceModel, listed_sequences, listed_support
from infer_align.spaces.sites import HasSites, second_site
from infer_align.spaces.space import Space
from infer_align.targets import Target

MAX_PAIRS = 2_000_000
"""Positions times pairs of tokens, of messages."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What there is to know about a target, solved exactly; see `solve`. Nats, totals.

    Parameters
    ----------
    log_z : array, shape (*contexts)
        log Σ_y exp(log density).
    entropy : array, shape (*contexts), or None
        −E_p[log p]. None for a hidden Markov prior that is not listed: log p is then no sum over
        positions.
    expected_log_potential : array, shape (*contexts)
        E_p[log potential]: E_p[reward]/beta for a tilt.
    kl_to_prior : array, shape (*contexts)
        KL(p‖prior) = E_p[log potential] − log Z.
    engine : str
        ``sequences``, ``types``, ``letters``, ``messages`` or ``sites``.
    reason : str
        What decided: sizes, and what was checked.
    log_prob : callable
        ``log_prob(y)``, normalised, of outcomes y on axis 0 (of several sites a dict).
    law : array or tuple
        The law itself. Sequences, sites: log-probabilities over ``space.outcomes``. Types:
        log-masses of the rows of ``counts``. Letters: log-probabilities of the tokens by position,
        (m, k). Messages: log-probabilities of the first state (S,) and of the transitions
        (m − 1, S, S).
    space : Space, optional
        The listed sequences, or values of sites.
    counts : array of int, shape (T, k), optional
        The listed types.
    """

    log_z: Any
    entropy: Any
    expected_log_potential: Any
    kl_to_prior: Any
    engine: str
    reason: str
    log_prob: Callable[[Any], Any] = field(repr=False)
    law: Any = field(repr=False)
    space: Space | None = field(default=None, repr=False)
    counts: np.ndarray | None = field(default=None, repr=False)

    def marginal(self, site: str) -> tuple[Space, Any]:
        """The law of one site of several.

        Parameters
        ----------
        site : str

        Returns
        -------
        space : Space
            The M distinct values of the site, in the order in which they are listed first.
        log_prob : array, shape (M, *contexts)

        Raises
        ------
        ValueError
            If the answer is not over several sites, or has no such site.

        Examples
        --------
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from infer_align import exact
        >>> def program():
        ...     style = numpyro.sample("style", dist.Bernoulli(0.5))
        ...     law = jnp.where(style, jnp.array([0.3, 0.7]), jnp.array([0.9, 0.1]))
        ...     y = numpyro.sample("y", dist.Categorical(law))
        ...     numpyro.factor("only ones", jnp.where(y == 1, 0.0, -jnp.inf))
        >>> space, log_prob = exact.solve(program).marginal("style")
        >>> space.outcomes.tolist(), [round(float(p), 4) for p in jnp.exp(log_prob)]
        ([0, 1], [0.125, 0.875])
        """
        sites = self.space.outcomes if self.space is not None else None
        if not isinstance(sites, dict) or self.space is None:
            raise ValueError(
                "a marginal is one site's law of several, and this answer has one site: its law is "
                "answer.law, or answer.log_prob(y)"
            )
        if site not in sites:
            raise ValueError(f"the sites are {', '.join(sites)}; got {site!r}")
        return marginal(self.space, self.law, site)


def solve(target: Any, *contexts: Any) -> Answer:
    r"""Solve a declared target exactly, by the engine that fits.

    Engines are tried in this order; the first that fits is named in the answer, with the reason.

    - `by_sequences`: all outcomes are listed. No assumption on the potential.
    - `by_types`: for independent, identically distributed tokens and a potential that does not
      depend on their order, one sequence of each count vector is evaluated.
    - `by_letters`: for independent tokens and a potential that is a sum over positions.
    - `by_messages`: for Markov or independent tokens and a potential that is a sum over
      neighbouring pairs, times automata (`product` with an `Automaton`).

    A program of several latent sites is solved by listing the values of all (engine ``sites``),
    with no assumption on the potential. An outcome is then a dict from site to value. What a site
    is drawn from, and what it can be, may depend on the sites before it, also by a Python branch
    on their values (with one context in Pyro); every site is sampled in every run.

    All but these two evaluate the potential on more sequences than they need and compare: a
    potential that has another form only on sequences that are not among these goes unnoticed.
    `Chain` and `reward_law` take the terms as declared, and need no such check.

    Parameters
    ----------
    target : Target, or Pyro or NumPyro program
    *contexts : Any
        What the target's program is conditioned on. Several contexts need one latent site and the
        first engine, or several latent sites.

    Returns
    -------
    Answer
        Differentiable in JAX (``jax.grad``, not ``jit``) and torch, as the target is.

    Raises
    ------
    ValueError
        If nothing fits: it says for each engine why not, and the size it would have needed. If the
        target accepts no outcome.

    Examples
    --------
    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from infer_align import exact
    >>> def program():
    ...     tokens = dist.Categorical(jnp.array([0.5, 0.3, 0.2])).expand([40]).to_event(1)
    ...     y = numpyro.sample("y", tokens)
    ...     numpyro.factor("reward", jnp.sum(y == 2) / 2.0)
    >>> answer = exact.solve(program)  # 3^40 outcomes
    >>> answer.engine, round(float(answer.log_z), 4), round(float(answer.kl_to_prior), 4)
    ('types', 4.8797, 0.9579)
    """
    target = as_target(target, *contexts)
    prior = target.given(*contexts)
    if second_site(prior) is not None:
        return _of_sites(target, contexts, prior)
    distribution = law_of(prior)
    support = listed_support(distribution)
    if support is not None:
        return _listed(target, contexts, Space(support), "the prior lists its support")
    problem = problem_of(target, contexts, distribution)
    refused = []
    for name, engine in _ENGINES.items():
        try:
            return engine(problem)
        except Unfit as reason:
            refused.append(f"{name}: {reason}")
    raise ValueError(
        f"target {target.name!r} cannot be solved exactly. " + "; ".join(refused) + ". Declare its "
        "terms (exact.Chain, exact.reward_law), shorten the sequences, or sample the target"
    )


def by_sequences(target: Any, *contexts: Any) -> Answer:
    """Solve a target by listing every outcome: `Space.solve` on the space of its prior.

    Parameters
    ----------
    target : Target, or Pyro or NumPyro program
    *contexts : Any

    Raises
    ------
    ValueError
        If there are over 4 million tokens to list.
    """
    return _sequences(problem_of(target, contexts))


def by_types(target: Any, *contexts: Any) -> Answer:
    r"""Solve a memoryless target whose potential does not depend on the order of tokens.

    .. math:: Z = \sum_n \frac{m!}{\prod_a n_a!} \prod_a p_a^{n_a}\, e^{φ(n)}

    Parameters
    ----------
    target : Target, or Pyro or NumPyro program
    *contexts : Any

    Raises
    ------
    ValueError
        If tokens are not independent and identically distributed; if the potential of a sequence
        differs from that of a random permutation of it (every type is tried); if there are over 4
        million tokens to list.
    """
    return _types(problem_of(target, contexts))


def by_letters(target: Any, *contexts: Any) -> Answer:
    """Solve a target of independent tokens whose potential is a sum over positions.

    Its law has independent tokens, too.

    Parameters
    ----------
    target : Target, or Pyro or NumPyro program
    *contexts : Any

    Raises
    ------
    ValueError
        If tokens are not independent, or the terms do not add up to the potential.
    """
    return _letters(problem_of(target, contexts))


def by_messages(target: Any, *contexts: Any) -> Answer:
    """Solve a Markov or memoryless target whose potential is a sum over neighbouring pairs.

    Its law is a Markov chain whose transitions change with the position. A sequence that ends is in
    a further state, the last, from then on.

    Parameters
    ----------
    target : Target, or Pyro or NumPyro program
    *contexts : Any

    Raises
    ------
    ValueError
        If the prior is not known as a Markov chain, or the terms do not add up to the potential.
    """
    return _messages(problem_of(target, contexts))


def _log_prob(target: Target, contexts: tuple[Any, ...], log_z: Any) -> Callable[[Any], Any]:
    return lambda y: target.log_density(y, *contexts) - log_z


def _listed(target: Target, contexts: tuple[Any, ...], space: Space, reason: str) -> Answer:
    solution = space.solve(target, *contexts)
    return Answer(
        solution.log_z, solution.entropy, solution.expected_log_potential, solution.kl_to_prior,
        "sequences", f"{len(space):,} outcomes listed: {reason}",
        _log_prob(target, contexts, solution.log_z), solution.log_prob, space,
    )  # fmt: skip


def _of_sites(target: Target, contexts: tuple[Any, ...], prior: HasSites) -> Answer:
    space, solution = solve_sites(target, contexts, prior)
    return Answer(
        solution.log_z, solution.entropy, solution.expected_log_potential, solution.kl_to_prior,
        "sites", f"{len(space):,} outcomes listed of the sites {', '.join(space.outcomes)}",
        looked_up(space, solution.log_prob), solution.log_prob, space,
    )  # fmt: skip


def _sequences(problem: Problem) -> Answer:
    model = problem.model
    entries = model.count() * model.length
    if entries > MAX_ENTRIES:
        raise Unfit(
            f"{_size(model.count())} sequences of {model.length} tokens (at most {MAX_ENTRIES:,} "
            "tokens in all)"
        )
    space = Space(listed_sequences(model))
    return _listed(problem.target, problem.contexts, space, "few enough to list")


def _types(problem: Problem) -> Answer:
    model = problem.model
    problem.single()
    if not model.memoryless:
        raise Unfit("tokens are not independent, identically distributed and of a fixed number")
    k, m = model.vocabulary_size, model.length
    types = number_of_types(k, m)
    if types * m > MAX_ENTRIES:
        raise Unfit(
            f"{_size(types)} count vectors of {m} tokens (at most {MAX_ENTRIES:,} tokens in all)"
        )
    counts = np.stack(compositions(m, k), axis=1)
    tokens = np.repeat(np.tile(np.arange(k), len(counts)), counts.ravel()).reshape(len(counts), m)
    potential = problem.potential(tokens)
    mixed = np.random.default_rng(0).permuted(tokens, axis=1)
    same = problem.agree(potential, moved := problem.potential(mixed))
    if not same.all():
        i = int(np.argmin(same))
        raise Unfit(
            f"the potential depends on the order of tokens: of {shown(tokens[i])} it is "
            f"{float(potential[i]):.6g}, of {shown(mixed[i])} {float(moved[i]):.6g}"
        )
    log_factorial = log_factorials(m)
    ways = log_factorial[m] - log_factorial[counts].sum(axis=1)
    log_p = problem.model.log_tokens
    assert log_p is not None
    xp = namespace(potential)
    ways, each = (xp.asarray(x, dtype=log_p.dtype) for x in (ways, counts))
    occurs = log_p[0] > -math.inf
    missing = each @ xp.astype(~occurs, log_p.dtype) > 0
    log_prior = ways + each @ xp.where(occurs, log_p[0], 0.0)  # 0 · log 0 is 0
    log_density = xp.where(missing, -math.inf, log_prior + potential)
    law, log_z = normalised(log_density)
    log_z, offset = _finite(log_z, problem), greatest(potential)
    expected, log_each = _mean(law, potential - offset), _mean(law, law - ways)
    return Answer(
        log_z, -log_each, expected + offset, expected - (log_z - offset), "types",
        f"{len(counts):,} count vectors; the potential was the same for a permutation of each",
        _log_prob(problem.target, problem.contexts, log_z), law, counts=counts,
    )  # fmt: skip


def _letters(problem: Problem) -> Answer:
    model = problem.model
    problem.single()
    if model.log_tokens is None or model.eos or problem.automata:
        raise Unfit("tokens are not independent and of a fixed number, or an automaton joins them")
    entries = model.vocabulary_size * model.length**2
    if entries > 10 * MAX_ENTRIES:
        raise Unfit(f"{entries:,} tokens to read the terms off (at most {10 * MAX_ENTRIES:,})")
    terms = position_terms(problem)
    xp, offset = namespace(terms.first), greatest(terms.first, axis=1)
    centred = terms.first - offset[:, None]
    log_each = logsumexp(model.log_tokens + centred, axis=1)
    log_rest = _finite(xp.sum(log_each), problem)
    law = model.log_tokens + centred - log_each[:, None]
    expected, total = _mean(law, centred), xp.sum(offset)
    log_z = log_rest + total
    return Answer(
        log_z, -_mean(law, law), expected + total, expected - log_rest, "letters",
        f"independent tokens; the potential was a sum over positions on {terms.checked} sequences",
        _log_prob(problem.target, problem.contexts, log_z), law,
    )  # fmt: skip


def _messages(problem: Problem) -> Answer:
    model = problem.model
    problem.single()
    first, edges, tokens = _log_prior(problem)
    k, m = model.vocabulary_size, model.length
    if m * len(tokens) ** 2 > MAX_PAIRS or (m * k) ** 2 > 100 * MAX_PAIRS:
        raise Unfit(
            f"{m} positions with {len(tokens)}² pairs of states (at most {MAX_PAIRS:,} in all)"
        )
    terms = pair_terms(problem)
    assert terms.edges is not None
    weights = _Weights(
        first, edges, *_by_state(terms, model, tokens), namespace(first).zeros_like(first)
    )
    for automaton in problem.automata:
        weights, tokens = _times(weights, tokens, automaton)
    xp, at_first = namespace(weights.first), greatest(weights.first)
    flat = xp.reshape(weights.edges, (m - 1, len(tokens) ** 2))
    at_edges = greatest(flat, axis=1) if m > 1 else flat[:, 0]
    first, edges = weights.first - at_first, weights.edges - at_edges[:, None, None]
    solved: Messages = solve_chain(
        weights.log_first + first, weights.log_edges + edges, weights.last, m
    )
    log_rest, total = _finite(solved.log_z, problem), at_first + xp.sum(at_edges)
    expected, log_z = solved.expectation(first, edges), log_rest + total
    entropy = None
    if model.log_emission is None:
        log_prior = solved.expectation(weights.log_first, weights.log_edges)
        entropy = log_rest - expected - log_prior
    return Answer(
        log_z, entropy, expected + total, expected - log_rest, "messages",
        f"{m} positions, {len(tokens)} states; the potential was a sum over neighbouring pairs on "
        f"{terms.checked} sequences",
        _log_prob(problem.target, problem.contexts, log_z),
        (solved.log_initial, solved.log_kernels),
    )  # fmt: skip


def _by_state(terms: Terms, model: SequenceModel, tokens: np.ndarray) -> tuple[Array, Array]:
    """The potential's terms by state; hidden states share those of their token."""
    assert terms.edges is not None
    if model.log_emission is None:
        return terms.first, terms.edges
    xp = namespace(terms.first)
    row, column = (xp.asarray(x) for x in np.broadcast_arrays(tokens[:, None], tokens[None, :]))
    return xp.take(terms.first, xp.asarray(tokens), axis=0), terms.edges[:, row, column]


class _Weights(NamedTuple):
    """Prior and potential of a chain: of its first state (S,), of its edges (m − 1, S, S)."""

    log_first: Array
    log_edges: Array
    first: Array
    edges: Array
    last: Array


def _times(
    weights: _Weights, tokens: np.ndarray, automaton: Automaton
) -> tuple[_Weights, np.ndarray]:
    """The chain over pairs (state, state of the automaton), and the token of each."""
    xp = namespace(weights.log_first)
    states, inner = len(tokens), len(automaton.transitions)
    table = automaton.by_token(tokens)  # of the next state, by state of the chain
    s, q = (x.ravel() for x in np.divmod(np.arange(states * inner), inner))
    follows = table[q][:, s] == q[None, :]
    begins = table[automaton.start, s] == q
    row, column = (xp.asarray(x) for x in np.broadcast_arrays(s[:, None], s[None, :]))
    pairs = lambda x: x[:, row, column]
    ends = xp.asarray(np.where(automaton.accepting[q], 0.0, -math.inf), dtype=weights.last.dtype)
    index = xp.asarray(s)
    first = xp.take(weights.log_first, index, axis=0)
    joint = _Weights(
        xp.where(xp.asarray(begins), first, -math.inf),
        xp.where(xp.asarray(follows), pairs(weights.log_edges), -math.inf),
        xp.take(weights.first, index, axis=0),
        pairs(weights.edges),
        xp.take(weights.last, index, axis=0) + ends,
    )
    return joint, tokens[s]


def _log_prior(problem: Problem) -> tuple[Array, Array, np.ndarray]:
    """Log-probabilities of first states (S,) and transitions (m − 1, S, S); states' tokens."""
    model = problem.model
    k, m = model.vocabulary_size, model.length
    tokens = np.arange(k)
    if model.log_emission is not None:
        return _log_hidden(model)
    if model.log_tokens is not None:
        xp = namespace(model.log_tokens)
        first = model.log_tokens[0]
        edges = xp.broadcast_to(model.log_tokens[1:, None, :], (m - 1, k, k))
    elif model.log_initial is not None and model.log_transition is not None:
        xp = namespace(model.log_initial)
        first = model.log_initial
        edges = xp.broadcast_to(model.log_transition[None], (m - 1, k, k))
    else:
        raise Unfit("the prior is not known as independent tokens or a Markov chain")
    if not model.eos:
        return first, edges, tokens
    ends = xp.asarray(np.isin(np.arange(k), model.eos))
    first = xp.concat([first, xp.full_like(first[:1], -math.inf)])
    # After an EOS the only next state is "ended", the last one.
    on = xp.where(ends[None, :, None], -math.inf, edges)
    to_end = xp.where(ends[None, :, None], 0.0 * edges[:, :, :1], -math.inf)
    edges = xp.concat([on, to_end], axis=2)
    stay = xp.where(xp.arange(k + 1) == k, 0.0, -math.inf) + xp.zeros_like(edges[:, :1, :1])
    return first, xp.concat([edges, stay], axis=1), np.append(tokens, model.pad)


def _log_hidden(model: SequenceModel) -> tuple[Array, Array, np.ndarray]:
    """The same of a hidden Markov model, over pairs of a hidden state and a token."""
    emission = model.log_emission
    if model.log_initial is None or model.log_transition is None or emission is None or model.eos:
        raise Unfit("hidden Markov models need initial law, transitions and emissions, and no EOS")
    xp = namespace(emission)
    hidden, k = emission.shape
    joint = hidden * k
    first = xp.reshape(model.log_initial[:, None] + emission, (joint,))
    step = xp.reshape(model.log_transition[:, :, None] + emission[None], (hidden, 1, joint))
    edges = xp.reshape(xp.broadcast_to(step, (hidden, k, joint)), (1, joint, joint))
    edges = xp.broadcast_to(edges, (model.length - 1, joint, joint))
    return first, edges, np.tile(np.arange(k), hidden)


def _mean(log_p: Array, values: Array) -> Array:
    """Σ exp(log_p)·values over all entries, those of probability 0 left out."""
    xp = namespace(log_p)
    possible = log_p > -math.inf
    return xp.sum(xp.exp(log_p) * xp.where(possible, values, 0.0))


def _finite(log_z: Array, problem: Problem) -> Array:
    if bool(log_z == -math.inf):
        raise ValueError(
            f"target {problem.target.name!r} accepts no sequence, so it has no law; relax its "
            "constraint"
        )
    return log_z


def _size(number: int) -> str:
    return f"{number:,}" if number < 10**15 else f"about 1e{len(str(number)) - 1}"


_ENGINES: dict[str, Callable[[Problem], Answer]] = {
    "sequences": _sequences,
    "types": _types,
    "letters": _letters,
    "messages": _messages,
}
