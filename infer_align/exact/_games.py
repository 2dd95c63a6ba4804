r"""Preference games with a KL price: the symmetric Nash equilibrium, and how far others are.

.. math:: J(π, π') = P(π ≻ π') - β\,\mathrm{KL}(π‖\mathrm{prior})
          + β\,\mathrm{KL}(π'‖\mathrm{prior})

Player one maximises J and player two minimises it; P(π ≻ π') = Σ π(y) P(y ≻ y') π'(y'), with
P(y ≻ y') + P(y' ≻ y) = 1. Munos et al. 2023 (arXiv 2312.00886); Tiapkin et al. 2025
(arXiv 2505.19731).
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from infer_align._arguments import positive, reals
from infer_align.divergences import reverse_kl

RESIDUAL = 1e-12


class Equilibrium(NamedTuple):
    """The regularised equilibrium of a preference game; see `nash`."""

    log_policy: Float[np.ndarray, " outcomes"]
    """log π*; ``-inf`` where the prior is 0."""
    win_rate: Float[np.ndarray, " outcomes"]
    """P(y ≻ π*) of each outcome; against itself π* wins half of the time."""
    log_z: float
    """log Σ prior·exp(P(y ≻ π*)/β): of the tilt that π* is."""
    kl_to_prior: float
    """KL(π*‖prior), nats."""
    duality_gap: float
    """max J(π, π*) − min J(π*, π), >= 0 and 0 at the equilibrium: the certificate."""
    residual: float
    """Largest |log π* − log of the best response to π*|."""


def nash(
    preference: Any,
    log_prior: Any,
    beta: float | int,
) -> Equilibrium:
    r"""The symmetric Nash equilibrium of a KL-regularised preference game, by Newton's method.

    .. math:: π^* \propto \mathrm{prior} \cdot \exp(P π^* / β)

    It is the only equilibrium, and the tilt of the prior by its own win rate.

    Parameters
    ----------
    preference : array, shape (N, N)
        P(y ≻ y') in row y, column y'; P + Pᵀ = 1.
    log_prior : array, shape (N,)
        Of any scale; ``-inf`` for outcomes that may not occur.
    beta : float
        Price of a nat, > 0, in units of probability.

    Returns
    -------
    Equilibrium
        In NumPy float64.

    Raises
    ------
    ValueError
        For a matrix that is no preference, a prior without support, a beta that is not positive,
        or one so small that rounding hides the equilibrium.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align import exact
    >>> rock_paper_scissors = np.array([[0.5, 0.1, 0.9], [0.9, 0.5, 0.1], [0.1, 0.9, 0.5]])
    >>> found = exact.nash(rock_paper_scissors, np.log([0.6, 0.3, 0.1]), beta=0.1)
    >>> np.exp(found.log_policy).round(4).tolist(), found.duality_gap < 1e-12
    ([0.2973, 0.4643, 0.2384], True)
    """
    table, prior, price = _checked(preference, log_prior, beta)
    inside = prior > -math.inf
    game, start = table[np.ix_(inside, inside)], prior[inside]
    wins = np.full(len(start), 0.5)
    # From a price at which the prior is nearly right, by factors of at most √2, to the price.
    steps = max(0, math.ceil(-2 * math.log2(price)))
    for step in np.append(np.geomspace(max(1.0, price), price, 1 + steps)[:-1], price):
        wins = step * _newton(game, start, step, wins / step)
    log_policy = np.full(len(prior), -math.inf)
    log_policy[inside] = _normalised(start + wins / price)
    win_rate = table @ np.exp(log_policy)
    response = best_response(table, log_policy, prior, price)
    residual = float(np.abs(log_policy[inside] - response[inside]).max())
    if not residual <= RESIDUAL * max(1.0, 1 / price):
        raise ValueError(
            f"the equilibrium at beta = {price:g} was not found to rounding (the best response "
            f"is off by {residual:.1e} in log-probability); raise beta"
        )
    return Equilibrium(
        log_policy,
        win_rate,
        float(np.logaddexp.reduce(prior + win_rate / price)),
        float(reverse_kl(log_policy, prior)),
        duality_gap(table, log_policy, prior, price),
        residual,
    )


def best_response(
    preference: Any,
    log_policy: Any,
    log_prior: Any,
    beta: float | int,
) -> Float[np.ndarray, " outcomes"]:
    """Log of the policy that does best against another: prior·exp(P(y ≻ π)/beta), normalised.

    Parameters
    ----------
    preference : array, shape (N, N)
    log_policy : array, shape (N,)
        The opponent, normalised.
    log_prior : array, shape (N,)
    beta : float

    Returns
    -------
    array, shape (N,)
    """
    table, prior, price = _checked(preference, log_prior, beta)
    opponent = _checked_policy(log_policy, prior)
    return _normalised(prior + table @ np.exp(opponent) / price)


def duality_gap(
    preference: Any,
    log_policy: Any,
    log_prior: Any,
    beta: float | int,
) -> float:
    r"""How much both players together could gain by leaving a policy: 0 only at the equilibrium.

    .. math:: \max_{π'} J(π', π) - \min_{π'} J(π, π') = 2β\, \mathrm{KL}(π‖\mathrm{BR}(π))

    Half of it is the exploitability. As a divergence it is exact to rounding also near 0.

    Parameters
    ----------
    preference : array, shape (N, N)
    log_policy : array, shape (N,)
        The policy, normalised.
    log_prior : array, shape (N,)
    beta : float

    Returns
    -------
    float
        inf for a policy that leaves the prior's support.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align import exact
    >>> half = np.log([0.5, 0.5])
    >>> round(exact.duality_gap([[0.5, 0.9], [0.1, 0.5]], half, half, beta=0.4), 6)
    0.096092
    """
    _, prior, price = _checked(preference, log_prior, beta)
    policy = _checked_policy(log_policy, prior)
    response = best_response(preference, policy, log_prior, beta)
    return 2 * price * max(float(reverse_kl(policy, response)), 0.0)


def _newton(game: np.ndarray, log_prior: np.ndarray, price: float, u: np.ndarray) -> np.ndarray:
    """Zero of u − P softmax(log prior + u)/β; its Jacobian is never singular, as P − ½ is skew."""
    equations = lambda u: u - game @ np.exp(_normalised(log_prior + u)) / price
    f = equations(u)
    for _ in range(200):
        p = np.exp(_normalised(log_prior + u))
        jacobian = np.eye(len(u)) - (game * p - np.outer(game @ p, p)) / price
        move, size = np.linalg.solve(jacobian, f), 1.0
        norm = float(np.abs(f).max())
        while size > 1e-10:
            tried = u - size * move
            new = equations(tried)
            if float(np.linalg.norm(new)) < (1 - 1e-4 * size) * float(np.linalg.norm(f)):
                break
            size /= 2
        else:
            return u
        u, f = tried, new
        if norm <= 1e-15 * max(1.0, 1 / price):
            return u
    return u


def _normalised(log_p: np.ndarray) -> np.ndarray:
    return log_p - np.logaddexp.reduce(log_p)


def _checked_policy(log_policy: Any, prior: np.ndarray) -> np.ndarray:
    """A policy on the outcomes of the prior, normalised."""
    policy = reals("log_policy", log_policy, need="an array of log-probabilities")
    if policy.shape != prior.shape:
        raise ValueError(
            f"log_policy has shape {policy.shape}, and there are {len(prior)} outcomes: give one "
            "log-probability each"
        )
    _check_log_density("log_policy", policy)
    return _normalised(policy)


def _check_log_density(what: str, x: np.ndarray) -> None:
    if np.isnan(x).any() or (x == math.inf).any() or not (x > -math.inf).any():
        raise ValueError(f"{what} must be finite, or -inf for probability 0, not everywhere")


def _checked(
    preference: Any, log_prior: Any, beta: float | int
) -> tuple[np.ndarray, np.ndarray, float]:
    """The preference matrix, the normalised prior and beta, if they make a game."""
    table = reals("preference", preference, need="a matrix of probabilities")
    prior = reals("log_prior", log_prior, need="an array of log-probabilities")
    n = len(prior) if prior.ndim == 1 else 0
    if not n or table.shape != (n, n):
        raise ValueError(
            f"a game of N outcomes has a preference matrix (N, N) and a log prior (N,), got "
            f"shapes {table.shape} and {prior.shape}"
        )
    if bad := np.argwhere(~np.isfinite(table)).tolist():
        i, j = bad[0]
        raise ValueError(
            f"preferences are probabilities, and that in row {i}, column {j} is {table[i, j]}"
        )
    if not (np.abs(table + table.T - 1).max() < 1e-9 and table.min() >= 0):
        worst = float(np.abs(table + table.T - 1).max())
        raise ValueError(
            "preferences are probabilities with P(y ≻ y') + P(y' ≻ y) = 1, also on the diagonal; "
            f"they miss it by up to {worst:.3g}, and the least is {table.min():.3g}; symmetrise "
            "with (P + 1 - P.T)/2"
        )
    positive("beta is the price of a nat and", beta, need="positive and finite")
    _check_log_density("log_prior", prior)
    return table, _normalised(prior), float(beta)
