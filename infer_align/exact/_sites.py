"""Targets of several latent sites: all outcomes listed, and evaluated with earlier sites held."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from infer_align._numerics import Array, beside, concrete, logsumexp, namespace
from infer_align.spaces.outcomes import distinct, positions, repeated
from infer_align.spaces.sites import Group, HasSites, joined, listed_sites
from infer_align.spaces.space import Solution, Space
from infer_align.targets import Constrained, Target, add_potential

TOLERANCE = 1e-3
"""Of the prior's sum over all outcomes, in single precision, too."""


@runtime_checkable
class Holds(Protocol):
    """The terms of a program, which can be those of its run with some sites held."""

    def holding(self, values: dict[str, Any]) -> Any:
        """Those terms."""
        ...


@dataclass(frozen=True, eq=False)
class _Evaluated:
    """A target's prior and potential on all outcomes of a space, in its order."""

    name: str
    log_prior: Array
    potential: Array

    def log_potential(self, y: Any) -> Array:
        return self.potential

    def log_density(self, y: Any) -> Array:
        return add_potential(self.log_prior, self.potential, self.name)


def solve_sites(
    target: Target, contexts: tuple[Any, ...], prior: HasSites
) -> tuple[Space, Solution]:
    """The space of a target's dict-valued outcomes, and its solution.

    Parameters
    ----------
    target : Target
    contexts : tuple
    prior : HasSites
        Of the target, given the contexts.
    """
    groups = listed_sites(prior)
    space = Space(joined(groups))
    shape = tuple(prior.batch_shape)  # type: ignore[attr-defined]
    at_once = space._for_contexts(shape)
    if prior.fixed_sites() is not None:
        log_prior = prior.log_prob(at_once)  # type: ignore[attr-defined]
        potential = target.log_potential(at_once, *contexts)
    else:
        parts = [prior.holding(g.earlier).log_prob(repeated(g.values, shape)) for g in groups]
        log_prior = _concat(parts)
        potential = _potential(target, contexts, groups, at_once)
    _check_sum(target.name, log_prior)
    return space, space.solve(_Evaluated(target.name, log_prior, potential))


def _check_sum(name: str, log_prior: Array) -> None:
    """Refuse a list that lacks values: NumPyro's are those of the first context."""
    xp = namespace(log_prior)
    total = concrete(xp.sum(xp.exp(log_prior), axis=0))
    if total is None:  # in jit
        return
    worst = total.flat[np.argmax(np.abs(total - 1))]
    if not abs(worst - 1) <= TOLERANCE:  # NaN fails, too
        raise ValueError(
            f"the prior of target {name!r} sums to {worst:.6g} over the {len(log_prior)} outcomes "
            "of its sites and needs 1; give its sites the same values in every context, and no "
            "scale or mask"
        )


def _potential(
    target: Target, contexts: tuple[Any, ...], groups: list[Group], at_once: dict[str, Array]
) -> Array:
    """Of a program group by group, so that it may branch on earlier sites; else of all at once."""
    declared = target.log_potential
    if not (isinstance(declared, Constrained) and isinstance(declared.terms, Holds)):
        return target.log_potential(at_once, *contexts)
    shape = tuple(target.given(*contexts).batch_shape)
    parts = []
    for group in groups:
        held = replace(declared, terms=declared.terms.holding(group.earlier))
        parts.append(held(repeated(group.values, shape), *contexts))
    return _concat(parts)


def _concat(parts: list[Array]) -> Array:
    return namespace(parts[0]).concat(parts)


def looked_up(space: Space, law: Array) -> Callable[[Any], Array]:
    """log p of outcomes (n, *contexts, ...), −inf of those that the space does not list.

    Parameters
    ----------
    space : Space
    law : array, shape (N, *contexts)
    """
    xp, shape = namespace(law), tuple(law.shape[1:])

    def log_prob(y: Any) -> Array:
        found = positions(y, space.outcomes)
        if found.shape[1:] != shape:
            raise ValueError(
                f"outcomes have the leading shape {found.shape}; needed is (n, *contexts) with "
                f"contexts {shape}"
            )
        flat = np.maximum(found, 0) * math.prod(shape) + np.arange(math.prod(shape)).reshape(shape)
        where = beside(law, flat.ravel(), integer=True)
        values = xp.reshape(xp.take(xp.reshape(law, (-1,)), where, axis=0), found.shape)
        return xp.where(beside(law, found >= 0, integer=True), values, -math.inf)

    return log_prob


def marginal(space: Space, law: Array, site: str) -> tuple[Space, Array]:
    """The distinct values of a site, and their log-probabilities (M, *contexts)."""
    values = space.outcomes[site]
    first, member = distinct(values)
    counts = np.bincount(member)
    rows = np.full((len(first), counts.max()), -1)
    order = np.argsort(member, kind="stable")
    place = np.arange(len(member)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows[member[order], place] = order
    xp, tail = namespace(law), tuple(law.shape[1:])
    taken = xp.take(law, beside(law, np.maximum(rows, 0).ravel(), integer=True), axis=0)
    shown = beside(law, (rows >= 0).reshape(*rows.shape, *(1,) * len(tail)), integer=True)
    log_p = xp.where(shown, xp.reshape(taken, (*rows.shape, *tail)), -math.inf)
    shown_values = xp.take(values, beside(values, first, integer=True), axis=0)
    return Space(shown_values), logsumexp(log_p, axis=1)
