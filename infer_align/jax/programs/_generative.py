r"""Programs as samplers with densities: `simulate` and `density`, and `marginal` and `normalize`.

A *sampler with estimated density* gives, with what it draws, a weight whose reciprocal is unbiased
for the reciprocal of the density, and at a given value one that is unbiased for the density:

.. math:: E[1/w \mid x] = 1/q(x) \quad\text{(simulate)}, \qquad E[w] = q(x) \quad\text{(density)}

so that log-weights enter bounds on the side where Jensen's inequality keeps them bounds
(Cusumano-Towner and Mansinghka 2017; Lew et al. 2022; Becker et al. 2024).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.primitives import Messenger

from infer_align import _supports
from infer_align._arguments import count
from infer_align._threads import alone
from infer_align.jax._support import refuse_moving_support
from infer_align.jax.programs._distributions import log_prob
from infer_align.jax.programs._frame import current
from infer_align.jax.programs._loops import particles

__all__ = ["Marginal", "Normalized", "density", "detach", "marginal", "normalize", "simulate"]

Array = Any
Program = Any
Sites = dict[str, Any]
ELSEWHERE = "of marginal, whose density is taken at draws of another program,"


@runtime_checkable
class Sampler(Protocol):
    """What `marginal` and `normalize` make, and `simulate` and `density` take beside programs."""

    def simulate(self, *args: Any) -> tuple[Sites, Array]:
        """Sites and a log-weight w with E[1/w | sites] = 1/density."""
        ...

    def density(self, sites: Mapping[str, Any], *args: Any) -> Array:
        """A log-weight w with E[w] = density."""
        ...


def simulate(program: Program, *args: Any) -> tuple[Sites, Array]:
    """Run a program: the values of its sample sites, and their log-density.

    Parameters
    ----------
    program : NumPyro program, or what `marginal` and `normalize` make
    *args : Any
        Its arguments.

    Returns
    -------
    dict
        By site. Sites marked ``infer={"is_auxiliary": True}`` (of NumPyro's autoguides) count in
        the density but are left out.
    array
        log-density: the sum over all sites, observed ones and factors included. Differentiable in
        the values and in the parameters.

    Examples
    --------
    >>> import jax, numpyro, numpyro.distributions as dist
    >>> from infer_align.jax import programs
    >>> guide = lambda loc: numpyro.sample("z", dist.Normal(loc, 1.0))
    >>> def negative_entropy(loc):
    ...     sites, log_q = programs.simulate(guide, loc)
    ...     return log_q
    >>> loss = programs.expectation(negative_entropy)
    >>> keys = jax.random.split(jax.random.key(0), 10_000)
    >>> round(float(jax.vmap(loss, (0, None))(keys, 2.0).mean()), 1)
    -1.4
    """
    if isinstance(program, Sampler):
        return program.simulate(*args)
    _check_set_up(program)
    with alone():
        trace = handlers.trace(program).get_trace(*args)
    sites = {
        name: site["value"]
        for name, site in trace.items()
        if site["type"] == "sample"
        and not site["is_observed"]
        and not site["infer"].get("is_auxiliary")
    }
    return sites, _log_density(trace, elsewhere=False)


def _check_set_up(program: Program) -> None:
    """An autoguide sets itself up at its first call, which must be on numbers."""
    fresh = hasattr(program, "_setup_prototype") and program.prototype_trace is None
    frame = current()
    if fresh and frame is not None and not frame.plan.concrete:
        raise ValueError(
            f"{type(program).__name__} is not set up yet, and would keep tracers; call "
            "programs.parameters(key, loss, *args) once before (programs.fit does)"
        )


def density(program: Program, sites: Mapping[str, Any], *args: Any) -> Array:
    """Log-density of a program at given values of its sample sites.

    Parameters
    ----------
    program : NumPyro program, or what `marginal` and `normalize` make
    sites : mapping from site to value
        Every latent site, and no other.
    *args : Any
        The program's arguments.

    Returns
    -------
    array
        The sum over all sites, observed ones and factors included; plates that draw a subsample
        scale theirs, and are those that `simulate` drew under the same name.

    Raises
    ------
    ValueError
        For a latent site without a value, or a value without a site.

    Examples
    --------
    >>> import numpyro, numpyro.distributions as dist
    >>> from infer_align.jax import programs
    >>> def model():
    ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("x", dist.Normal(z, 1.0), obs=1.0)
    >>> round(float(programs.density(model, {"z": 0.5})), 4)
    -2.0879
    """
    if isinstance(program, Sampler):
        return program.density(sites, *args)
    run = _Complete(handlers.substitute(program, data=dict(sites)), sites)
    hidden = ("sample", "control_flow")
    with alone(), handlers.block(hide_fn=lambda msg: msg["type"] in hidden):
        found = handlers.trace(run).get_trace(*args)
    latent = [n for n, s in found.items() if s["type"] == "sample" and not s["is_observed"]]
    if missing := [name for name in latent if name not in sites]:
        raise _without_value(missing[0], sites)
    if unused := [name for name in sites if name not in found]:
        raise ValueError(
            f"density got a value for site {unused[0]!r}, which the program does not have; its "
            f"latent sites are {', '.join(latent) or 'none'}"
        )
    return _log_density(found, elsewhere=True)


def detach(program: Program) -> Program:
    """The same program, whose draws carry no gradient: to draw from what is being learnt.

    Parameters
    ----------
    program : NumPyro program, or what `marginal` and `normalize` make

    Returns
    -------
    NumPyro program
    """
    if isinstance(program, Marginal):
        return Marginal(detach(program.program), program.keep, detach(program.proposal), program.n)
    if isinstance(program, Normalized):
        inner = detach(program.program), detach(program.proposal)
        return Normalized(*inner, program.n, program.index)
    return _Detached(program)


def _without_gradient(x: Any) -> Any:
    return jax.lax.stop_gradient(x) if jnp.issubdtype(jnp.result_type(x), jnp.inexact) else x


class _Detached(Messenger):
    """Stops gradients in the parameters of every site."""

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample":
            msg["fn"] = jax.tree.map(_without_gradient, msg["fn"])
        elif msg["type"] == "control_flow":
            body, *rest = msg["args"]
            msg["args"] = (_Detached(body), *rest)


def given(program: Program, why: str, names: Sequence[str] | None = None) -> Program:
    """The same program, for its density where sites have values that do not move with its bounds.

    Parameters
    ----------
    program : NumPyro program, or what `marginal` and `normalize` make
    why : str
        Of the message that refuses a support which moves with what is differentiated.
    names : sequence of str, optional
        The sites. Default: all that are latent.
    """
    if isinstance(program, Marginal):
        inner = given(program.program, why, names), program.keep, program.proposal
        return Marginal(*inner, program.n)
    if isinstance(program, Normalized):
        return Normalized(given(program.program, why, names), program.proposal, program.n,
                          program.index)  # fmt: skip
    return _Given(program, why, names)


class _Given(Messenger):
    """Says at each site that its density is taken at a value from elsewhere."""

    def __init__(self, fn: Any, why: str, names: Sequence[str] | None) -> None:
        super().__init__(fn)
        self.why, self.names = why, names

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample" and (self.names is None or msg["name"] in self.names):
            msg["infer"] = {**msg["infer"], "given": self.why}
        elif msg["type"] == "control_flow":
            body, *rest = msg["args"]
            msg["args"] = (_Given(body, self.why, self.names), *rest)


class _Complete(Messenger):
    """Refuses a latent site that no value was given for."""

    def __init__(self, fn: Any, sites: Mapping[str, Any]) -> None:
        super().__init__(fn)
        self.sites = sites

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample" and msg["value"] is None and not msg["is_observed"]:
            raise _without_value(msg["name"], self.sites)


def _without_value(name: str, sites: Mapping[str, Any]) -> ValueError:
    return ValueError(
        f"density needs a value for site {name!r}; it was given {', '.join(sites) or 'none'}"
    )


def _log_density(trace: Mapping[str, Any], *, elsewhere: bool) -> Array:
    """Sum over the sites, whose values were drawn there or come from elsewhere."""
    total = jnp.zeros(())
    for site in trace.values():
        if site["type"] != "sample":
            continue
        each = site["infer"].get("log_density")
        if each is None:
            value, inside = jnp.asarray(site["value"]), None
            if elsewhere or site["is_observed"]:
                inside, value = _supports.within(site["fn"], value)
            each = log_prob(site["fn"], value)
            each = each if inside is None else _supports.masked(each, inside)
        if (why := site["infer"].get("given")) and not site["is_observed"]:
            what = f"site {site['name']!r} {why}"
            each = refuse_moving_support(each, site["fn"], what)
        total = total + jnp.sum(each if site["scale"] is None else site["scale"] * each)
    return total


@dataclass(frozen=True)
class Marginal:
    """Made by `marginal`."""

    program: Program
    keep: tuple[str, ...]
    proposal: Program
    n: int

    def simulate(self, *args: Any) -> tuple[Sites, Array]:
        """The kept sites, and the reciprocal-unbiased weight: what was drawn is one of n."""
        sites, log_joint = simulate(self.program, *args)
        kept = self._kept(sites)
        other = {name: value for name, value in sites.items() if name not in kept}
        first = log_joint - density(given(self.proposal, ELSEWHERE), other, kept, *args)
        if self.n == 1:
            return kept, first
        rest = particles(self.n - 1, lambda: self._weight(kept, args))
        return kept, _log_mean(jnp.concatenate([first[None], rest]))

    def density(self, sites: Mapping[str, Any], *args: Any) -> Array:
        """The unbiased weight, from n draws of the proposal."""
        kept = self._kept(dict(sites))
        if self.n == 1:
            return self._weight(kept, args)
        return _log_mean(particles(self.n, lambda: self._weight(kept, args)))

    def _weight(self, kept: Sites, args: tuple[Any, ...]) -> Array:
        other, log_proposal = simulate(self.proposal, kept, *args)
        program = given(self.program, ELSEWHERE, list(other))
        return density(program, kept | other, *args) - log_proposal

    def _kept(self, sites: Sites) -> Sites:
        if missing := [name for name in self.keep if name not in sites]:
            raise ValueError(
                f"site {missing[0]!r} is to be kept and the program has "
                f"{', '.join(sites) or 'none'}"
            )
        return {name: sites[name] for name in self.keep}


def marginal(program: Program, keep: Sequence[str], proposal: Program, *, n: int = 1) -> Marginal:
    r"""A program's marginal on some of its sites, its density estimated by importance sampling.

    .. math:: w = \frac1n \sum_{k=1}^n \frac{q(x, u_k)}{r(u_k | x)}

    with u_k from r, but for one of them in `simulate`, which is the one drawn with x. As a guide it
    gives hierarchical variational inference (n = 1: Ranganath et al. 2016; more: Sobolev and
    Vetrov 2019); as a model, an importance-weighted likelihood. Each density is taken at draws of
    the other program, so its support there must not move with what is learnt; that is refused.

    Parameters
    ----------
    program : NumPyro program
        q(x, u).
    keep : sequence of str
        The sites x.
    proposal : NumPyro program
        r(u | x): ``proposal(kept, *args)`` with kept a dict, draws all other sites.
    n : int
        Draws of the proposal.

    Returns
    -------
    Marginal
        For `simulate` and `density`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from infer_align.jax import programs
    >>> def mixture():
    ...     u = numpyro.sample("u", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("x", dist.Normal(u, 1.0))
    >>> wide = lambda kept: numpyro.sample("u", dist.Normal(kept["x"] / 2, 1.0))
    >>> summed = programs.marginal(mixture, ["x"], wide)
    >>> at_one = lambda: jnp.exp(programs.density(summed, {"x": 1.0}))
    >>> keys = jax.random.split(jax.random.key(0), 10_000)
    >>> round(float(jax.vmap(programs.expectation(at_one))(keys).mean()), 2)  # N(1; 0, √2)
    0.22
    """
    return Marginal(program, tuple(keep), proposal, _count(n))


@dataclass(frozen=True)
class Normalized:
    """Made by `normalize`."""

    program: Program
    proposal: Program
    n: int
    index: str

    def simulate(self, *args: Any) -> tuple[Sites, Array]:
        """One of n draws of the proposal, chosen by its weight."""
        drawn, log_weights, log_p = particles(self.n, lambda: self._particle(args))
        choice: Any = dist.Categorical(logits=log_weights)
        chosen = numpyro.sample(self.index, choice)
        sites = jax.tree.map(lambda x: x[chosen], drawn)
        return sites, log_p[chosen] - _log_mean(log_weights)

    def density(self, sites: Mapping[str, Any], *args: Any) -> Array:
        """Of what `simulate` returns: the value given is one of n, the others are drawn."""
        log_p = density(self.program, sites, *args)
        own = (log_p - density(self.proposal, sites, *args))[None]
        if self.n > 1:
            rest = particles(self.n - 1, lambda: self._particle(args)[1])
            own = jnp.concatenate([own, rest])
        return log_p - _log_mean(own)

    def log_normalizer(self, *args: Any) -> Array:
        """log of an unbiased estimate of the program's normalising constant."""
        return _log_mean(particles(self.n, lambda: self._particle(args)[1]))

    def _particle(self, args: tuple[Any, ...]) -> tuple[Sites, Array, Array]:
        sites, log_q = simulate(self.proposal, *args)
        log_p = density(self.program, sites, *args)
        return sites, log_p - log_q, log_p


def normalize(
    program: Program, proposal: Program, *, n: int, index: str = "index"
) -> Normalized:  # fmt: skip
    r"""A program's posterior by importance resampling, as a sampler with estimated density.

    .. math:: x = x_J,\; J \sim w_j = \frac{p(x_j)}{q(x_j)}, \qquad
              \hat q(x) = \frac{p(x)}{\frac1n \sum_k w_k}

    Its own law is that of what is chosen, which tends to p/Z as n grows.

    Parameters
    ----------
    program : NumPyro program
        Unnormalised: its observed sites and factors count.
    proposal : NumPyro program
        Of the same latent sites.
    n : int
        Draws of the proposal.
    index : str
        Name of the site of the choice, a categorical one: give it `score` or `enumerate_` where the
        choice depends on what is learnt.

    Returns
    -------
    Normalized
        For `simulate` and `density`.

    Examples
    --------
    >>> import jax, numpyro, numpyro.distributions as dist
    >>> from infer_align.jax import programs
    >>> def model():
    ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("x", dist.Normal(z, 1.0), obs=2.0)
    >>> prior = lambda: numpyro.sample("z", dist.Normal(0.0, 1.0))
    >>> posterior = programs.normalize(model, prior, n=50)
    >>> mean = programs.expectation(lambda: programs.simulate(posterior)[0]["z"])
    >>> keys = jax.random.split(jax.random.key(0), 5_000)
    >>> round(float(jax.vmap(mean)(keys).mean()), 1)
    1.0
    """
    return Normalized(program, proposal, _count(n), index)


def _log_mean(log_weights: Array) -> Array:
    return jax.nn.logsumexp(log_weights) - math.log(log_weights.shape[0])


def _count(n: int) -> int:
    return count("n, a number of draws,", n)
