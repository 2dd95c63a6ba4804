"""Log-probabilities that are −inf outside a distribution's support, of NumPyro, Pyro and torch.

There torch raises. NumPyro gives −inf, with derivatives that may be NaN, or what the formula says
where its validation is off: a finite number for a half-normal at −1. A value that was drawn from
another distribution has density 0 there, and so weight 0.
"""

from typing import Any

from array_api_compat import array_namespace

__all__ = ["log_prob", "masked", "within"]

UNCHECKED = frozenset({
    "_Real", "_RealVector", "_RealMatrix", "_Complex", "_Dependent", "dependent_property", "_Cat",
    "_Simplex", "_Sphere", "_ZeroSum", "_CorrCholesky", "_CorrMatrix",
    "_Stack",
})  # fmt: skip
"""Without bounds, or so thin that rounding puts a distribution's own draws outside."""


def log_prob(distribution: Any, value: Any) -> Any:
    """Log-probability at a value from anywhere: −inf, with no gradient, outside the support.

    Parameters
    ----------
    distribution : Distribution
        Of NumPyro, torch or Pyro. What else has a ``log_prob`` is asked for it as it is.
    value : array or dict

    Returns
    -------
    array
    """
    inside, value = within(distribution, value)
    found = distribution.log_prob(value)
    return found if inside is None else masked(found, inside)


def masked(log_prob: Any, inside: Any) -> Any:
    """−inf where a value is not inside."""
    return array_namespace(log_prob).where(inside, log_prob, -float("inf"))


def within(distribution: Any, value: Any) -> tuple[Any, Any]:
    """Where a value lies in the support, and the value with something inside put elsewhere.

    Parameters
    ----------
    distribution : Distribution
    value : array

    Returns
    -------
    inside : bool array or None
        None where nothing is to check.
    value : array
        At which ``log_prob`` and its derivatives are finite.
    """
    kind = type(distribution)
    if isinstance(value, dict) or kind.__module__.startswith("infer_align."):
        return None, value  # they know themselves
    name, base = kind.__name__, getattr(distribution, "base_dist", None)
    if name == "MaskedDistribution":
        inside, value = within(base, value)
        mask = distribution._mask
        if inside is None or mask is False:
            return None, value
        return (inside if mask is True else inside | ~mask), value
    if name == "ExpandedDistribution":
        return within(base, value)
    if name == "Independent":
        inside, value = within(base, value)
        return _all(inside, distribution.reinterpreted_batch_ndims), value
    inside, value = _own(distribution, value)
    # Folded distributions and their like have a formula, and a support, of their own.
    if base is None or not kind.log_prob.__qualname__.startswith("TransformedDistribution."):
        return inside, value
    return _through(distribution, inside, value)


def _all(inside: Any, axes: int) -> Any:
    if inside is None or axes == 0:
        return inside
    xp = array_namespace(inside)
    return xp.all(inside, axis=tuple(range(-axes, 0)))


def _through(distribution: Any, inside: Any, value: Any) -> tuple[Any, Any]:
    """Also the support of what is transformed, whose image both libraries may not know."""
    base = distribution.base_dist
    if _unbounded(base):
        return inside, value
    before = value
    for transform in reversed(distribution.transforms):
        before = transform.inv(before)
    found, before = within(base, before)
    if found is None:
        return inside, value
    event = len(distribution.event_shape)
    found = _all(found, before.ndim - len(base.event_shape) - (value.ndim - event))
    after = before
    for transform in distribution.transforms:
        after = transform(after)
    xp = array_namespace(found)
    at = xp.reshape(found, (*found.shape, *(1,) * event))
    value = xp.where(at, value, after)
    return (found if inside is None else inside & found), value


def _unbounded(distribution: Any) -> bool:
    while hasattr(distribution, "base_dist"):
        if type(distribution).__name__ not in ("Independent", "ExpandedDistribution"):
            return False
        distribution = distribution.base_dist
    return _constraint(distribution) is None


def _constraint(distribution: Any) -> Any:
    """The support's constraint, None where there is nothing to check."""
    try:
        support = distribution.support
    except (AttributeError, NotImplementedError, AssertionError):
        return None
    inner = support
    while hasattr(inner, "base_constraint"):
        inner = inner.base_constraint
    return None if inner is None or type(inner).__name__ in UNCHECKED else support


def _own(distribution: Any, value: Any) -> tuple[Any, Any]:
    """The declared support alone."""
    support = _constraint(distribution)
    if support is None:
        return None, value
    axes = 0
    while hasattr(support, "base_constraint"):
        if type(support).__name__ == "MixtureSameFamilyConstraint" and _several(support):
            return None, value  # torch wants a value inside of every component
        axes += getattr(support, "reinterpreted_batch_ndims", 0)
        support = support.base_constraint
    inside = support.check(value)
    xp = array_namespace(inside)
    at = xp.reshape(inside, (*inside.shape, *(1,) * support.event_dim))
    instead = _feasible(support, value)
    if instead is not None:
        value = xp.where(at, value, instead)
    return _all(inside, axes), value


def _several(support: Any) -> bool:
    """Whether a mixture's components have bounds of their own."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    bounds = (getattr(support, name, None) for name in ("lower_bound", "upper_bound"))
    return any(getattr(bound, "ndim", 0) for bound in bounds)


def _bounds(support: Any) -> tuple[Any, Any]:
    """Of single numbers; None where there is none."""
    if support.event_dim:
        return None, None
    return getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)


def _feasible(support: Any, value: Any) -> Any:
    """A value inside; None where none is known, and the value itself has to do."""
    low, high = _bounds(support)
    if low is None and high is None:
        try:
            return support.feasible_like(value)
        except (AttributeError, NotImplementedError):  # of torch, or a user's own constraint
            return 0 if type(support).__name__ == "_Boolean" else None
    if support.is_discrete:
        return high if low is None else low
    if low is None:
        return high - 1.0
    return low + 1.0 if high is None else 0.5 * (low + high)
