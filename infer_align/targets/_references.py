"""Targets made of powers of distributions: tempering and geometric mixtures of references."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from infer_align import _supports
from infer_align._arguments import entries, real
from infer_align._numerics import Array, namespace
from infer_align.targets._capabilities import check_provides
from infer_align.targets._combinators import summed_se
from infer_align.targets._target import LOG_DENSITY, HasLogProb, LogPotential, Target, add_potential


def temper(base: Any, power: float | int) -> Target:
    r"""Power of a target with the same prior as measure to draw from.

    .. math:: P = \mathrm{base}^{κ} = \mathrm{prior} \cdot
              \exp\big(κ φ + (κ - 1) \log \mathrm{prior}\big)

    κ > 1 sharpens, κ < 1 flattens (1/κ is a temperature of whole outcomes, not of their tokens);
    an outcome that the base rejects stays rejected.

    Parameters
    ----------
    base : Distribution, callable from contexts to one, or Target
        What is tempered. The prior of the result is its prior, which is scored twice.
    power : float
        κ, positive and finite.

    Returns
    -------
    Target

    Raises
    ------
    ValueError
        If the power is not positive and finite, or the base has no density.

    Examples
    --------
    >>> import jax.numpy as jnp, numpyro.distributions as dist
    >>> from infer_align.targets import temper
    >>> target = temper(dist.Categorical(probs=jnp.array([0.8, 0.2])), 2.0)
    >>> [round(float(x), 4) for x in jnp.exp(target.log_density(jnp.array([0, 1])))]
    [0.64, 0.04]
    """
    if not 0 < real("power", power, need="a positive number") < math.inf:
        raise ValueError(
            f"the power of a tempered target must be positive and finite, got {power}; a uniform "
            "law (power 0) is a prior of its own, and condition() keeps the outcomes it allows"
        )
    parts = _Parts.of(base, "temper")

    def potential(y: Any, *contexts: Any) -> Array:
        extra = scaled(parts.log_prior(y, *contexts), power - 1)
        if parts.log_potential is None:
            return extra
        return add_potential(extra, scaled(parts.log_potential(y, *contexts), power), name)

    name = f"temper({parts.name})"
    se = summed_se([(float(power), parts.log_potential_se)])
    return Target(parts.prior, potential, name, (potential,), log_potential_se=se)


def geometric_mixture(
    references: Sequence[Any], weights: Sequence[float | int], *, base: Any = None
) -> Target:
    r"""Geometric mixture of reference models, the anchor of Nash-MD and of several references.

    .. math:: P(y | x) = \prod_i ρ_i(y | x)^{w_i}, \qquad w_i ≥ 0, \quad \sum_i w_i = 1

    Munos et al. 2023 (arXiv 2312.00886) anchor to π^{1−τ} ρ^τ. Of all laws π it has the least
    Σ w_i KL(π‖ρ_i). Tilt it for a reward: ``tilt(geometric_mixture(...), reward, beta)``.

    Parameters
    ----------
    references : sequence of Distribution, callable from contexts to one, or Target
        ρ_i, over the same outcomes; they need not be normalised.
    weights : sequence of float
        w_i, one for each reference.
    base : Distribution, callable or Target, optional
        Whose prior is drawn from. Default: the first reference.

    Returns
    -------
    Target
        An outcome that any reference of positive weight rejects has density 0. Its
        ``log_potential_se`` is Σ w_i se_i of the references that are estimated.

    Raises
    ------
    ValueError
        For another number of weights than references, weights that are negative or do not sum
        to one, or a reference without a density.

    Examples
    --------
    >>> import jax.numpy as jnp, numpyro.distributions as dist
    >>> from infer_align.targets import geometric_mixture
    >>> a, b = (dist.Categorical(probs=jnp.array(p)) for p in ([0.8, 0.2], [0.2, 0.8]))
    >>> mixture = geometric_mixture([a, b], [0.75, 0.25])
    >>> [round(float(x), 4) for x in jnp.exp(mixture.log_density(jnp.array([0, 1])))]
    [0.5657, 0.2828]
    """
    references = entries("references", references, of="distributions or targets")
    weights = entries("weights", weights)
    if not references or len(weights) != len(references):
        raise ValueError(
            f"a geometric mixture needs a weight for each reference, got {len(weights)} weights "
            f"and {len(references)} references"
        )
    shares = [real("a weight of a geometric mixture", w) for w in weights]
    if not all(w >= 0 for w in shares) or abs(sum(weights) - 1) > 1e-6:
        raise ValueError(
            "the weights of a geometric mixture are non-negative and sum to one, got "
            f"{[float(w) for w in weights]}; for other powers multiply temper(reference, power) "
            "with product"
        )
    parts = [_Parts.of(r, "geometric_mixture") for r in references]
    first = parts[0] if base is None else _Parts.of(base, "geometric_mixture")
    kept = [(part, float(w)) for part, w in zip(parts, weights, strict=True) if w > 0]

    def potential(y: Any, *contexts: Any) -> Array:
        log_prior = first.log_prior(y, *contexts)
        total = scaled(log_prior, -1.0)
        for part, weight in kept:
            known = log_prior if part.prior is first.prior else None
            log_density = part.log_density(y, *contexts, log_prior=known)
            total = add_potential(total, scaled(log_density, weight), name)
        return total

    name = f"geometric_mixture({', '.join(part.name for part in parts)})"
    se = summed_se([(weight, part.log_potential_se) for part, weight in kept])
    return Target(first.prior, potential, name, (potential,), log_potential_se=se)


class _Parts(NamedTuple):
    """A reference as a prior and a potential, which may be none."""

    prior: Any
    log_potential: LogPotential | None
    name: str
    log_potential_se: LogPotential | None = None

    @classmethod
    def of(cls, base: Any, who: str) -> "_Parts":
        if isinstance(base, Target):
            check_provides(base, LOG_DENSITY, who)
            return cls(base.prior, base.log_potential, base.name, base.log_potential_se)
        return cls(base, None, getattr(base, "__name__", type(base).__name__))

    def log_prior(self, y: Any, *contexts: Any) -> Array:
        if isinstance(self.prior, HasLogProb):
            return _supports.log_prob(self.prior, y)
        return _supports.log_prob(self.prior(*contexts), y)

    def log_density(self, y: Any, *contexts: Any, log_prior: Array | None = None) -> Array:
        prior = self.log_prior(y, *contexts) if log_prior is None else log_prior
        if self.log_potential is None:
            return prior
        return add_potential(prior, self.log_potential(y, *contexts), self.name)


def scaled(log_density: Array, factor: float) -> Array:
    """Factor times a log-density whose ``-inf`` has another bearer: 0 there for factors <= 0."""
    xp = namespace(log_density)
    nothing = log_density == -math.inf
    scaled_ = factor * xp.where(nothing, 0.0, log_density)
    return xp.where(nothing, -math.inf if factor > 0 else 0.0, scaled_)
