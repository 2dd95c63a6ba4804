"""Declarations of moment constraints: by a combinator, or inside a program."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from array_api_compat import is_array_api_obj, is_torch_array

from infer_align._arguments import entries, instance, number
from infer_align._numerics import Array, namespace
from infer_align.targets._target import LOG_DENSITY, LogPotential, Target, first_site

Values = dict[str, tuple[Array, float]]
"""Of each moment: the feature's values (n, *contexts), and the mean it must have."""
Terms = Callable[..., tuple[Array | None, Values]]
"""(y, *contexts) -> a potential without the moments (None: none) and the moments' values."""


class Moment(NamedTuple):
    """A moment constraint E[feature] = mean, the average over contexts of each one's law.

    Parameters
    ----------
    name : str
    feature : callable
        ``(y, *contexts) -> (n, *contexts)``, finite numbers or booleans.
    mean : float
        In units of the feature.
    """

    name: str
    feature: LogPotential
    mean: float


@dataclass(frozen=True)
class Constrained:
    """The log-potential of a target with moment constraints: potential + Σ_k λ_k φ_k."""

    terms: Terms
    name: str
    multipliers: tuple[tuple[str, float], ...] | None = None

    def __call__(self, y: Any, *contexts: Any) -> Array:
        """Log-potential (n, *contexts), in nats; ValueError while λ is not known."""
        potential, values = self.terms(y, *contexts)
        if not values:
            assert potential is not None
            return potential
        if self.multipliers is None:
            raise unsolved(self.name, list(values))
        known = dict(self.multipliers)
        check_names(self.name, known, list(values))
        tilt: Any = 0.0
        for name, (feature, _) in values.items():
            tilt = tilt + known[name] * as_numbers(feature)
        if potential is None:
            return tilt
        xp = namespace(potential, tilt)
        rejected = potential == -math.inf
        return xp.where(rejected, -math.inf, xp.where(rejected, 0.0, potential) + tilt)


def unsolved(target: str, names: Sequence[str]) -> ValueError:
    """The refusal of a density whose multipliers are not known, and the remedy."""
    return ValueError(
        f"target {target!r} declares the moments {', '.join(names)}, and its density is not known "
        "before their multipliers are: solve them with exact.match_moments(target), "
        "solve_moments(target, sample) or match_moments(target, draw) and use the fit's .target, "
        "or give moment_match(target, multipliers={...})"
    )


def check_names(target: str, given: Mapping[str, Any], declared: Sequence[str]) -> None:
    """Refuse multipliers that are not one for each moment."""
    if set(given) != set(declared):
        raise ValueError(
            f"target {target!r} declares the moments {sorted(declared)} and multipliers are given "
            f"for {sorted(given)}; give one to each, and to no other"
        )
    for name, value in given.items():
        number(f"the multiplier of moment {name!r}", value)


def as_numbers(values: Array) -> Array:
    """As floats: in torch of double precision, for λ·φ of lower precision would round λ."""
    if is_torch_array(values) and values.device.type != "mps":
        return values.double()
    return values * 1.0


def as_moments(moments: Any) -> tuple[Moment, ...]:
    """Moments from a mapping name -> (feature, mean), or from a sequence of `Moment`."""
    if isinstance(moments, Mapping):
        moments = [(name, *_parts(pair, name)) for name, pair in moments.items()]
    found = tuple(Moment(*_parts(one)) for one in entries("moments", moments, of="moments"))
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        raise ValueError(f"each moment needs a name of its own, got {names}")
    for one in found:
        _finite_mean(one.name, one.mean)
    return found


def _parts(given: Any, name: str | None = None) -> tuple[Any, ...]:
    """Name, feature and mean of a moment, or the last two of a named one; what else is refused."""
    needed = ("name", "feature", "mean")[0 if name is None else 1 :]
    who = "a moment" if name is None else f"moment {name!r}"
    if not isinstance(given, Sequence) or len(given) != len(needed):
        raise ValueError(
            f"{who} is given as ({', '.join(needed)}), got {given!r}; write "
            '{"name": (feature, mean)}, or Moment(name, feature, mean)'
        )
    *_, feature, _ = given
    if not callable(feature):
        raise ValueError(
            f"the feature of {who} is a function (y, *contexts) -> (n, *contexts), got {feature!r}"
        )
    return tuple(given)


def _finite_mean(name: str, mean: Any) -> float:
    try:
        if isinstance(mean, bool | str):
            raise TypeError
        known = float(mean)
    except TypeError as error:
        raise ValueError(
            f"the mean of moment {name!r} must be a known number, got {type(mean).__name__}"
        ) from error
    if not math.isfinite(known):
        raise ValueError(f"the mean of moment {name!r} must be finite, got {known}")
    return known


_FRAME: ContextVar[Values | None] = ContextVar("infer_align_moments", default=None)


@contextmanager
def collecting() -> Iterator[Values]:
    """Collect what `moment` declares while a program runs; the backends open this."""
    found: Values = {}
    token = _FRAME.set(found)
    try:
        yield found
    finally:
        _FRAME.reset(token)


def moment(name: str, values: Any, mean: Any) -> None:
    r"""Declare inside a program that the expectation of ``values`` shall be ``mean``.

    The target is :math:`P = \mathrm{base}\, e^{\sum_k λ_k φ_k}`, the law nearest to the rest of the
    program, in KL, that has all its moments (GDC: Khalifa et al. 2021, arXiv 2012.11635).

    Parameters
    ----------
    name : str
    values : array
        φ(y). One number in a NumPyro program, which describes one outcome; of shape
        ``(n, *contexts)`` in a Pyro program. Booleans and integers are allowed.
    mean : float
        In units of φ, averaged over contexts.

    Raises
    ------
    RuntimeError
        Outside a program of ``infer_align.jax.target`` or ``infer_align.torch.target``.
    ValueError
        If a moment has that name already, or the mean is not a known finite number.

    Examples
    --------
    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> import infer_align as ia
    >>> def program():
    ...     y = numpyro.sample("y", dist.Categorical(jnp.array([0.5, 0.3, 0.2])))
    ...     ia.moment("last", y == 2, 0.4)
    >>> fit = ia.exact.match_moments(program)
    >>> round(fit.multipliers["last"], 4)  # log(0.4/0.6) - log(0.2/0.8)
    0.9808
    """
    found = _FRAME.get()
    if found is None:
        raise RuntimeError(
            f"moment({name!r}, ...) was called outside a target's program; call it inside a "
            "program given to infer_align.jax.target or infer_align.torch.target, or use "
            "moment_match(base, {name: (feature, mean)})"
        )
    if name in found:
        raise ValueError(f"moment {name!r} is declared twice in one program")
    if not is_array_api_obj(values):
        raise ValueError(
            f"the feature of moment {name!r} must be an array, got {type(values).__name__}"
        )
    found[name] = (values, _finite_mean(name, mean))


def constrained_of(target: Target) -> Constrained:
    """The constraints that a target declares, not yet solved.

    Raises
    ------
    ValueError
        If there are none; if they are solved; if something was composed on top of them.
    """
    instance("target", target, Target, "moment_match(prior, {'name': (feature, mean)})")
    own = target.log_potential
    if isinstance(own, Constrained):
        if own.multipliers is not None:
            raise ValueError(
                f"the moments of target {target.name!r} have multipliers already; solve the "
                "target that declares them"
            )
        return own
    if any(isinstance(f, Constrained) and f.multipliers is None for f in target.factors):
        raise ValueError(
            f"target {target.name!r} multiplies something into a target whose moments are not "
            "solved, so it is not said of which law they shall be the moments; solve the inner "
            "target first, or declare the moments last: moment_match(tilt(...), {...})"
        )
    raise ValueError(
        f"target {target.name!r} declares no moments; write moment_match(target, "
        '{"name": (feature, mean)}), or infer_align.moment("name", values, mean) in its program'
    )


def with_multipliers(target: Target, multipliers: Mapping[str, float]) -> Target:
    """The same target with λ known."""
    known = tuple((name, float(value)) for name, value in multipliers.items())

    def solve(potential: Any) -> Any:
        unknown = isinstance(potential, Constrained) and potential.multipliers is None
        return replace(potential, multipliers=known) if unknown else potential

    return replace(
        target,
        log_potential=solve(constrained_of(target)),
        factors=tuple(solve(f) for f in target.factors),
        provides=target.provides | LOG_DENSITY,
        log_bound=None,  # of the potential without them
    )


def unconstrained(target: Target) -> Target:
    """The target without its moment constraints: the base that a sample is drawn of.

    Parameters
    ----------
    target : Target
        From `moment_match`, or from a program with `moment`.

    Returns
    -------
    Target

    Raises
    ------
    ValueError
        If the target declares no moments, or they are solved already.

    Examples
    --------
    >>> import jax.numpy as jnp, numpyro.distributions as dist
    >>> from infer_align import moment_match
    >>> from infer_align.targets import unconstrained
    >>> coin = dist.Categorical(jnp.array([0.25, 0.75]))
    >>> target = moment_match(coin, {"heads": (lambda y: y == 1, 0.5)})
    >>> jnp.exp(unconstrained(target).log_density(jnp.arange(2))).tolist()
    [0.25, 0.75]
    """
    terms = constrained_of(target).terms

    def base(y: Any, *contexts: Any) -> Array:
        potential = terms(y, *contexts)[0]
        return _nothing(target, y, contexts) if potential is None else potential

    factors = tuple(f for f in target.factors if not isinstance(f, Constrained))
    return replace(
        target, log_potential=base, factors=factors, provides=target.provides | LOG_DENSITY
    )


def _nothing(target: Target, y: Any, contexts: tuple[Any, ...]) -> Array:
    """A potential of 0, shape (n, *contexts)."""
    prior = target.given(*contexts)
    shape = getattr(prior, "batch_shape", None)
    if shape is None:
        return 0.0 * prior.log_prob(y)
    first = first_site(y)
    xp = namespace(first)
    where = {"device": first.device} if is_torch_array(first) else {}
    return xp.zeros((first.shape[0], *shape), **where)
