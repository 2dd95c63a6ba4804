r"""Gradient estimators of a single sample site.

The gradient of E[f] through a site x ~ q_θ is that of q_θ alone; what f does with x, and how other
sites are estimated, does not matter. An estimator needs the site's distribution, and f with the
site set to some value, which is found by running the program again.

.. math:: \nabla_θ E_{q_θ}[f(x)] = E[\nabla_θ f(x_θ(ε))] = E[f(x)\nabla_θ\log q_θ(x)]
          = \sum_x f(x)\nabla_θ q_θ(x) = c_θ\,(E_{q^+}[f] - E_{q^-}[f])

An estimator is chosen by the name of the site (see `expectation`), or at the site itself:
``numpyro.sample("z", d, infer={"gradient": sites.score})``.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from infer_align._arguments import count, number, positive
from infer_align.jax.programs._distributions import base_of, log_prob, support_of

__all__ = [
    "ALL",
    "Alternatives",
    "SiteEstimator",
    "enumerate_",
    "gumbel_softmax",
    "local_expectation",
    "measure_valued",
    "reparam",
    "score",
    "score_baseline",
    "score_loo",
    "score_running",
    "straight_through",
]

Array = Any
stop = jax.lax.stop_gradient


class Alternatives(NamedTuple):
    """Other values of a site, and what f there is worth to the gradient.

    The site's share of the gradient is the gradient of Σ stop(f(value))·weight.
    """

    values: Array
    """Shape (A, *elements, *event)."""
    weights: Array
    """Shape (A, *elements): zero, with a gradient in the distribution's parameters."""
    own: Array | None = None
    """Shape (*elements): the same of the value that was drawn."""


class SiteEstimator(NamedTuple):
    """How the gradient through one site is estimated; made by the functions of this module."""

    name: str
    kind: str
    """``pathwise``, ``score``, ``enumerate`` or ``local``."""
    draw: Callable[[Any, Array], Array] | None = None
    """``(distribution, key)``: the value of a pathwise site, where it is not the distribution's."""
    alternatives: Callable[[Any, Array, Array], Alternatives] | None = None
    """``(distribution of the elements, value, key)``, of a local one."""
    draws: bool = False
    """Whether these need a key; it is None otherwise."""
    baseline: Any = None
    """Of a score estimator: a number, or a function of the objective's arguments."""
    replicates: int = 1
    """Independent evaluations of the objective that it needs."""
    decay: float | None = None
    """Of a running baseline."""
    bias: str = ""
    """Why the gradient is biased, if it is."""

    def __repr__(self) -> str:
        return self.name + (", biased" if self.bias else "")


reparam = SiteEstimator("reparam", "pathwise")
r"""Pathwise: x = x_θ(ε), implicitly where NumPyro's sampler does (gamma, beta, Dirichlet, ...).

∇E[f] = E[∇_θ f(x_θ(ε))]: unbiased where f is absolutely continuous in x, with an integrable
derivative. Kinks are fine, of f (|x|, relu) and of the density (Laplace); a jump is not: what
passes over it has no derivative, so that f = 1[x > 0] gives 0 whatever is learnt, with no variance
to show it. No run can see that; use `score` or `measure_valued` there. Bounds of the support may
move with what is learnt (``Uniform(0, t)``), if f does not jump where they are.
"""

score = SiteEstimator("score", "score")
r"""Score function without baseline: E[f(x) ∇log q(x)].

Unbiased for every f, also one that jumps, with E|f ∇log q| finite, where the density's support does
not move with what is learnt and the density is absolutely continuous in it for almost every x
(kinks are fine). A support that moves is refused, by the derivative of its bounds, for every rule
that rests on a score function; also where the density falls to 0 at the bound (``Levy(loc)``) and
it would be right. The variance is finite where that of f ∇log q is.
"""


def score_loo(n: int = 2) -> SiteEstimator:
    """Score function; the baseline of each of n evaluations is the mean of the others.

    Unbiased where `score` is. All evaluations enter the value and the gradient of all sites (Mnih
    and Rezende 2016; Kool et al. 2019).

    Parameters
    ----------
    n : int
        Evaluations of the whole objective, >= 2; the same at all sites.
    """
    n = count("n, the evaluations of a leave-one-out baseline,", n, low=2)
    return SiteEstimator(f"score_loo({n})", "score", replicates=n)


def score_running(decay: float = 0.9) -> SiteEstimator:
    """Score function; the baseline is a running mean of the objective over earlier calls.

    Unbiased where `score` is: the mean is of calls before this one. `fit` carries it; else pass it
    to the expectation as ``baselines``.

    Parameters
    ----------
    decay : float
        Weight of the mean so far, in [0, 1).
    """
    if not 0 <= number("decay", decay) < 1:
        raise ValueError(f"the decay of a running mean lies in [0, 1), got {decay}")
    return SiteEstimator(f"score_running({decay:g})", "score", decay=decay)


def score_baseline(baseline: Any) -> SiteEstimator:
    """Score function with a baseline of one's own.

    Unbiased where `score` is, whatever the baseline, since it does not see what is drawn.

    Parameters
    ----------
    baseline : number, or callable
        A callable gets the arguments of the objective. No gradient flows into it.
    """
    if isinstance(baseline, str | bytes) or not (callable(baseline) or jnp.ndim(baseline) == 0):
        raise TypeError(f"a baseline is a number or a function, got {baseline!r}")
    if isinstance(baseline, float) and not math.isfinite(baseline):
        raise ValueError(f"a baseline is a finite number, got {baseline}")
    return SiteEstimator("score_baseline", "score", baseline=baseline)


enumerate_ = SiteEstimator("enumerate", "enumerate")
"""Sum over the support, exactly. Sites that are enumerated are so jointly: their supports multiply.

Values and gradients have no variance from this site. f may jump and the values are listed once:
what is learnt must not change which they are (a number of trials that is differentiated is
refused). With plates of many elements use
`local_expectation`, which is linear in them.
"""


def _switched(base: Any, value: Array) -> Alternatives:
    """The other value of a Bernoulli element: p is all that has a gradient."""
    p = jnp.broadcast_to(base.probs, value.shape)
    mine = jnp.where(value == 1, 1.0, -1.0) * (p - stop(p))
    return Alternatives((1 - value)[None], -mine[None], mine)


def _local_expectation(d: Any, value: Array, key: Array) -> Alternatives:
    base = base_of(d)
    if isinstance(base, dist.BernoulliProbs | dist.BernoulliLogits):
        return _switched(base, value)
    listed = support_of(d)
    each = listed.reshape((len(listed), *(1,) * len(d.batch_shape), *d.event_shape))
    support = jnp.broadcast_to(each, (len(listed), *d.batch_shape, *d.event_shape))
    q = jnp.exp(log_prob(d, support))  # (A, *elements)
    axes = tuple(range(support.ndim - d.event_dim, support.ndim))
    same = jnp.all(support == value, axis=axes) if d.event_dim else support == value
    # The others only: cyclic shifts of the position of what was drawn.
    size, own = support.shape[0], jnp.argmax(same, axis=0)
    shifts = jnp.arange(1, size).reshape((-1,) + (1,) * own.ndim)
    index = (own + shifts) % size
    # Where q is 0 there may be no value, and it is worth nothing: take what was drawn.
    index = jnp.where(jnp.take_along_axis(q, index, axis=0) > 0, index, own)
    weights = jnp.where(index == own, 0.0, jnp.take_along_axis(q, index, axis=0))
    expand = index.reshape(index.shape + (1,) * d.event_dim)
    values = jnp.take_along_axis(support, expand, axis=0)
    mine = jnp.take_along_axis(q, own[None], axis=0)[0]
    return Alternatives(values, weights - stop(weights), mine - stop(mine))


local_expectation = SiteEstimator("local_expectation", "local", alternatives=_local_expectation)
r"""For every element of the site alone, Σ_v f(v) ∇q(v), the others as drawn.

Unbiased (Titsias and Lázaro-Gredilla 2015) for every f, where the values do not depend on what is
learnt, as for `enumerate_`. Costs one run of the rest for each element and each
other value, in one ``vmap``.
"""


def _measure_valued(d: Any, value: Array, key: Array) -> Alternatives:
    base, shape = base_of(d), tuple(d.batch_shape)
    for kind, rule in _DECOMPOSITIONS.items():
        if isinstance(base, kind):
            return rule(base, shape, value, key)
    raise ValueError(
        f"no measure-valued derivative of {type(base).__name__} is known; there are those of "
        f"{', '.join(kind.__name__ for kind in _DECOMPOSITIONS)}; use reparam or score"
    )


measure_valued = SiteEstimator("measure_valued", "local", alternatives=_measure_valued, draws=True)
r"""Measure-valued derivatives: ∂E[f]/∂θ_j = c_j (E_{q⁺}[f] − E_{q⁻}[f]) for each parameter.

Unbiased, also where f jumps (Mohamed et al. 2020, table 1), with E_{q⁺}|f| and E_{q⁻}|f| finite;
the variance is finite where those of f² are, whose tails are those of q but for a power of x. The
supports of all known families are fixed. Bernoulli, categorical, Poisson (rate),
normal (loc and scale), gamma (rate; its shape by score function), exponential. Costs up to two runs
of the rest for each element and parameter.
"""


def _both(plus: Array, minus: Array, constant: Array, parameter: Array) -> Alternatives:
    weight = stop(constant) * (parameter - stop(parameter))
    return Alternatives(stop(jnp.stack([plus, minus])), jnp.stack([weight, -weight]))


def _joined(*parts: Alternatives) -> Alternatives:
    return Alternatives(
        jnp.concatenate([part.values for part in parts]),
        jnp.concatenate([part.weights for part in parts]),
    )


def _normal(d: Any, shape: tuple[int, ...], value: Array, key: Array) -> Alternatives:
    loc, scale = (jnp.broadcast_to(x, shape) for x in (d.loc, d.scale))
    k1, k2, k3, k4 = jax.random.split(key, 4)
    # ∂/∂loc: Weibull(2, √2) on both sides. ∂/∂scale: double-sided Maxwell less the normal.
    w = jnp.sqrt(2 * jax.random.exponential(k1, shape))
    sign = jnp.where(jax.random.bernoulli(k2, shape=shape), 1.0, -1.0)
    maxwell = sign * jnp.sqrt(jnp.sum(jax.random.normal(k3, (3, *shape)) ** 2, axis=0))
    normal = jax.random.normal(k4, shape)
    by_loc = _both(loc + scale * w, loc - scale * w, 1 / (scale * math.sqrt(2 * math.pi)), loc)
    return _joined(by_loc, _both(loc + scale * maxwell, loc + scale * normal, 1 / scale, scale))


def _poisson(d: Any, shape: tuple[int, ...], value: Array, key: Array) -> Alternatives:
    rate = jnp.broadcast_to(d.rate, shape)
    weight = rate - stop(rate)
    return Alternatives(stop(value + 1)[None], weight[None], -weight)


def _gamma(d: Any, shape: tuple[int, ...], value: Array, key: Array) -> Alternatives:
    if isinstance(d, dist.Exponential):
        concentration, rate = jnp.ones(shape), jnp.broadcast_to(d.rate, shape)
    else:
        concentration, rate = (jnp.broadcast_to(x, shape) for x in (d.concentration, d.rate))
    # Gamma(α + 1) is Gamma(α) and an exponential more.
    more = value + jax.random.exponential(key, shape) / rate
    weight = stop(concentration / rate) * (rate - stop(rate))
    own = weight
    if not isinstance(d, dist.Exponential):  # no decomposition is standard for the shape: score
        log_q = dist.Gamma(concentration, stop(rate)).log_prob(value)
        own = weight + log_q - stop(log_q)
    return Alternatives(stop(more)[None], -weight[None], own)


def _finite(d: Any, shape: tuple[int, ...], value: Array, key: Array) -> Alternatives:
    return _local_expectation(d.expand(shape) if d.batch_shape != shape else d, value, key)


_DECOMPOSITIONS: dict[Any, Callable[..., Alternatives]] = {
    dist.BernoulliProbs: _finite, dist.BernoulliLogits: _finite,
    dist.CategoricalProbs: _finite, dist.CategoricalLogits: _finite,
    dist.Poisson: _poisson, dist.Normal: _normal, dist.Gamma: _gamma, dist.Exponential: _gamma,
}  # fmt: skip


def gumbel_softmax(temperature: float) -> SiteEstimator:
    """Relax a Bernoulli or one-hot site (``Multinomial(total_count=1)``) to its simplex. Biased.

    The program sees the relaxed value (Jang et al. 2017; Maddison et al. 2017), so value and
    gradient are those of another program, near this one at low temperatures.

    Parameters
    ----------
    temperature : float
        > 0.
    """
    temperature = positive("temperature", temperature)
    return SiteEstimator(
        f"gumbel_softmax({temperature:g})", "pathwise",
        lambda d, key: _relaxed(d, key, temperature),
        bias="the program sees a relaxed value",
    )  # fmt: skip


def straight_through(temperature: float = 1.0) -> SiteEstimator:
    """Draw from a Bernoulli or one-hot site; differentiate its relaxation. Biased.

    The value is unbiased; the gradient is that of `gumbel_softmax`, taken at the discrete value.

    Parameters
    ----------
    temperature : float
        > 0.
    """
    temperature = positive("temperature", temperature)

    def draw(d: Any, key: Array) -> Array:
        soft = _relaxed(d, key, temperature)
        if _is_one_hot(d):
            hard = jax.nn.one_hot(jnp.argmax(soft, axis=-1), soft.shape[-1], dtype=soft.dtype)
        else:
            hard = jnp.where(soft > 0.5, 1.0, 0.0)
        return soft + stop(hard - soft)

    return SiteEstimator(
        f"straight_through({temperature:g})", "pathwise", draw,
        bias="the gradient is that of a relaxed value",
    )  # fmt: skip


def _is_one_hot(d: Any) -> bool:
    base: Any = base_of(d)
    multinomial = isinstance(base, dist.MultinomialProbs | dist.MultinomialLogits)
    return multinomial and isinstance(base.total_count, int) and base.total_count == 1


def _relaxed(d: Any, key: Array, temperature: float) -> Array:
    base: Any = base_of(d)
    if _is_one_hot(d):
        gumbel = jax.random.gumbel(key, (*d.batch_shape, *d.event_shape))
        return jax.nn.softmax((_logits(base) + gumbel) / temperature, axis=-1)
    if isinstance(base, dist.BernoulliProbs | dist.BernoulliLogits):
        logistic = jax.random.logistic(key, (*d.batch_shape, *d.event_shape))
        return jax.nn.sigmoid((_logits(base) + logistic) / temperature)
    raise ValueError(
        f"{type(base).__name__} has no relaxation whose values a program takes in their place; "
        "write the site as Bernoulli or as Multinomial(total_count=1), or use score or enumerate_"
    )


def _logits(d: Any) -> Array:
    return d.logits


ALL = (
    reparam, score, score_loo(4), score_running(0.9), score_baseline(0.5), enumerate_,
    local_expectation, measure_valued, gumbel_softmax(0.5), straight_through(0.5),
)  # fmt: skip
"""One of each, for the contract tests."""
