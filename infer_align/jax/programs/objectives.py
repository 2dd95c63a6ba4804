r"""Objectives, each a program of a few lines over `simulate`, `density` and `particles`.

They are called inside an objective, which chooses signs and what is learnt::

    loss = expectation(lambda phi: -elbo(model, partial(guide, phi)))

A model p(x, z) has its data observed; a guide q(z) draws the model's latent sites. Either may be a
`marginal` or a `normalize`, which turns a bound into its hierarchical version; args go to both, so
that an amortised guide sees the same context as the model. Bounds are of log p(x), and stay so with
any unbiased estimator; with a biased one they raise.

`wake_model`, `wake_proposal`, `forward_kl`, `jeffreys`, `vargrad` and `sleep` differentiate a
density at draws that do not move: what they learn must not move its support, else it is refused.
"""

from typing import Any

import jax
import jax.numpy as jnp

from infer_align._arguments import count, number
from infer_align.jax.programs._frame import promise_bound
from infer_align.jax.programs._generative import (
    Marginal,
    Program,
    _log_mean,
    density,
    detach,
    given,
    simulate,
)
from infer_align.jax.programs._loops import particles

__all__ = [
    "chi_upper_bound",
    "diwhvi",
    "elbo",
    "forward_kl",
    "hvi",
    "iwelbo",
    "iwhvi",
    "jeffreys",
    "renyi_bound",
    "sleep",
    "vargrad",
    "wake_model",
    "wake_proposal",
]

Array = Any
stop = jax.lax.stop_gradient


def _log_weight(model: Program, guide: Program, args: tuple[Any, ...]) -> Array:
    """log p(x, z) − log q(z) of a draw z of the guide."""
    sites, log_q = simulate(guide, *args)
    return density(model, sites, *args) - log_q


def elbo(model: Program, guide: Program, *args: Any) -> Array:
    r"""Evidence lower bound, E_q[log p(x, z) − log q(z)] = log p(x) − KL(q‖posterior).

    Parameters
    ----------
    model, guide : NumPyro programs, or what `marginal` and `normalize` make
    *args : Any
        Of both.

    Returns
    -------
    array
        To be maximised.

    Examples
    --------
    >>> import jax, numpyro, numpyro.distributions as dist
    >>> from infer_align.jax import programs
    >>> def model():
    ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("x", dist.Normal(z, 1.0), obs=2.0)
    >>> exact = lambda: numpyro.sample("z", dist.Normal(1.0, 0.5**0.5))  # the posterior
    >>> loss = programs.expectation(lambda: programs.objectives.elbo(model, exact))
    >>> round(float(loss(jax.random.key(0))), 3)  # log N(2; 0, √2), whatever is drawn
    -2.266
    """
    promise_bound("elbo")
    return _log_weight(model, guide, args)


def iwelbo(model: Program, guide: Program, *args: Any, n: int) -> Array:
    r"""Importance-weighted bound, E[log (1/n) Σ p(x, z_k)/q(z_k)] (Burda et al. 2016).

    Parameters
    ----------
    model, guide : NumPyro programs, or what `marginal` and `normalize` make
    *args : Any
        Of both.
    n : int
        Particles; the bound rises with n.
    """
    promise_bound("iwelbo")
    return _log_mean(particles(n, lambda: _log_weight(model, guide, args)))


def renyi_bound(model: Program, guide: Program, *args: Any, alpha: float, n: int) -> Array:
    r"""Variational Rényi bound, log((1/n) Σ w_k^{1−α})/(1 − α) (Li and Turner 2016, eq. 7).

    α = 0 is `iwelbo`, α → 1 the `elbo`; a lower bound of log p(x) for 0 <= α < 1.

    Parameters
    ----------
    model, guide : NumPyro programs, or what `marginal` and `normalize` make
    *args : Any
        Of both.
    alpha : float
        Not 1.
    n : int
        Particles.
    """
    if number("alpha", alpha) == 1:
        raise ValueError("the Rényi bound of order 1 is the elbo; use that")
    if 0 <= alpha < 1:
        promise_bound("renyi_bound")
    log_w = particles(n, lambda: _log_weight(model, guide, args))
    return _log_mean((1 - alpha) * log_w) / (1 - alpha)


def chi_upper_bound(model: Program, guide: Program, *args: Any, order: float = 2.0) -> Array:
    r"""w^order, whose expectation is p(x)^order·exp((order − 1)·Rényi) >= p(x)^order.

    Its minimum over guides is the χ-divergence's (Dieng et al. 2017, CUBO). log E is the bound; the
    logarithm of a mean of few is not.

    Parameters
    ----------
    model, guide : NumPyro programs
    *args : Any
        Of both.
    order : float
        > 1.
    """
    if not number("order", order) > 1:
        raise ValueError(f"the χ upper bound needs an order > 1, got {order}")
    promise_bound("chi_upper_bound")
    return jnp.exp(order * _log_weight(model, guide, args))


def hvi(
    model: Program, guide: Program, proposal: Program, *args: Any, keep: tuple[str, ...]
) -> Array:
    """Hierarchical variational inference: the elbo of a guide's marginal, by one draw.

    Ranganath et al. 2016 (auxiliary variables: Agakov and Barber 2004).

    Parameters
    ----------
    model, guide : NumPyro programs
        The guide has further sites.
    proposal : NumPyro program
        ``proposal(kept, *args)``, of the guide's further sites.
    *args : Any
        Of all.
    keep : tuple of str
        The model's sites.
    """
    return elbo(model, Marginal(guide, keep, proposal, 1), *args)


def iwhvi(
    model: Program, guide: Program, proposal: Program, *args: Any, keep: tuple[str, ...], n: int
) -> Array:
    """`hvi` with n draws of the proposal (Sobolev and Vetrov 2019).

    Parameters
    ----------
    model, guide, proposal, *args, keep
        As in `hvi`.
    n : int
        Draws of the proposal, the guide's own among them.
    """
    return elbo(model, Marginal(guide, keep, proposal, n), *args)


def diwhvi(
    model: Program, guide: Program, proposal: Program, *args: Any, keep: tuple[str, ...],
    n: int, particles: int,
) -> Array:  # fmt: skip
    """Doubly importance-weighted: the `iwelbo` of a guide's marginal (Sobolev and Vetrov 2019).

    Parameters
    ----------
    model, guide, proposal, *args, keep
        As in `hvi`.
    n : int
        Draws of the proposal for each particle.
    particles : int
        Of the importance-weighted bound.
    """
    return iwelbo(model, Marginal(guide, keep, proposal, n), *args, n=particles)


def wake_model(model: Program, guide: Program, *args: Any, n: int) -> Array:
    r"""Wake phase of the model: Σ_k w̄_k log p(x, z_k), to be maximised over the model.

    w̄ are self-normalised weights p/q of draws of the guide, without gradient; so are the draws. Its
    gradient tends to that of log p(x) as n grows (reweighted wake-sleep, Bornschein and Bengio
    2015, eq. 4).

    Parameters
    ----------
    model, guide : NumPyro programs
    *args : Any
        Of both.
    n : int
        Particles.
    """
    share, log_p, _ = _wake(given(model, _of("wake_model")), guide, args, n)
    return jnp.sum(share * log_p)


def wake_proposal(model: Program, guide: Program, *args: Any, n: int) -> Array:
    r"""Wake phase of the guide: Σ_k w̄_k log q(z_k), to be maximised over the guide.

    Its gradient tends to that of −KL(posterior‖q) (Bornschein and Bengio 2015, eq. 5).

    Parameters
    ----------
    model, guide : NumPyro programs
    *args : Any
        Of both.
    n : int
        Particles.
    """
    share, _, log_q = _wake(model, given(guide, _of("wake_proposal")), args, n)
    return jnp.sum(share * log_q)


def sleep(model: Program, guide: Program, observed: tuple[str, ...], *args: Any) -> Array:
    r"""Sleep phase of the guide: log q(z | x) of z and x that the model draws (Hinton et al. 1995).

    Parameters
    ----------
    model : NumPyro program
        Without data: it draws the observed sites too.
    guide : NumPyro program
        ``guide(data, *args)`` with data a dict of the observed sites.
    observed : tuple of str
        Their names.
    *args : Any
        Of both.
    """
    sites, _ = simulate(detach(model), *args)
    latent = {name: x for name, x in sites.items() if name not in observed}
    guide = given(guide, _of("sleep"))
    return density(guide, latent, {name: sites[name] for name in observed}, *args)


def forward_kl(model: Program, guide: Program, *args: Any, n: int) -> Array:
    r"""KL(posterior‖q) by self-normalised importance, Σ w̄_k log w_k − log (1/n) Σ w_k.

    To be minimised over the guide; the gradient is that of `wake_proposal`, with its sign changed.
    Consistent as n grows, biased by O(1/n).

    Parameters
    ----------
    model, guide : NumPyro programs
    *args : Any
        Of both.
    n : int
        Particles.
    """
    share, log_p, log_q = _wake(model, given(guide, _of("forward_kl")), args, n)
    log_w = stop(log_p) - log_q
    return jnp.sum(share * log_w) - stop(_log_mean(log_w))


def jeffreys(model: Program, guide: Program, *args: Any, n: int) -> Array:
    r"""KL(q‖posterior) + KL(posterior‖q) − log p(x): `forward_kl` less the `elbo`.

    Parameters
    ----------
    model, guide : NumPyro programs
    *args : Any
        Of both.
    n : int
        Particles of the forward one.
    """
    return forward_kl(model, guide, *args, n=n) - _log_weight(model, guide, args)


def vargrad(model: Program, guide: Program, *args: Any, n: int) -> Array:
    r"""Half the variance of log q(z_k) − log p(x, z_k) over n draws without gradient.

    Its gradient in the guide is unbiased for that of KL(q‖posterior): the score function with
    leave-one-out baseline (Richter et al. 2020, eq. 8). Requires a guide whose support does not
    move with what is learnt, as every score function.

    Parameters
    ----------
    model, guide : NumPyro programs
    *args : Any
        Of both.
    n : int
        Draws, >= 2.
    """
    n = count("n, the draws of a variance,", n, low=2)
    _, log_p, log_q = _wake(model, given(guide, _of("vargrad")), args, n)
    return jnp.var(log_q - stop(log_p), ddof=1) / 2


def _of(objective: str) -> str:
    return f"of {objective}, which takes the density at draws that do not move,"


def _wake(
    model: Program, guide: Program, args: tuple[Any, ...], n: int
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Self-normalised weights, log p and log q of n draws; only the latter two have gradients."""

    def one() -> tuple[Array, Array]:
        sites, _ = simulate(detach(guide), *args)
        sites = stop(sites)
        return density(model, sites, *args), density(guide, sites, *args)

    log_p, log_q = particles(n, one)
    return jax.nn.softmax(stop(log_p - log_q)), log_p, log_q
