"""Outcomes of several named sites, listed one site after the other, given those before it."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from infer_align._numerics import Array, concrete, namespace
from infer_align.spaces.outcomes import MAX_ENTRIES
from infer_align.spaces.sequences import (
    SequenceModel,
    listed_sequences,
    listed_support,
    sequence_model,
)

MAX_GROUPS = 4_000
"""Values of the sites before the last: the program runs at least once for each."""
PROBES = 8
"""Values of a site that are tried for whether another site comes after it, if that may depend."""


@runtime_checkable
class HasSites(Protocol):
    """The prior of a program: it knows its latent sites one after the other."""

    name: str

    def next_site(self) -> tuple[str, Any] | None:
        """The first latent site that is not held, and its distribution; None: there is none."""
        ...

    def holding(self, values: dict[str, Any]) -> Any:
        """The same prior with the values of some sites fixed, whose log-probabilities count."""
        ...

    def fixed_sites(self) -> frozenset[str] | None:
        """Latent sites of a program that can be run with all values of each at once; else None."""
        ...


class Group(NamedTuple):
    """The outcomes that differ in the last site alone."""

    earlier: dict[str, Array]
    """One value of each site before it."""
    site: str
    """The last."""
    values: Array
    """Its values, on axis 0."""

    @property
    def sites(self) -> tuple[str, ...]:
        """All, in the order of the program."""
        return (*self.earlier, self.site)


def second_site(prior: Any) -> str | None:
    """The latent site that comes after the first or last value of the first; None: there is none.

    Nor is one known where the first site's values cannot be listed, or the prior is no program's.
    """
    found = prior.next_site() if isinstance(prior, HasSites) else None
    values = None if found is None else _known_support(found[1])
    if found is None or values is None:
        return None
    for i in sorted({0, len(values) - 1}):
        after = prior.holding({found[0]: values[i]}).next_site()
        if after is not None:
            return after[0]
    return None


def listed_sites(prior: HasSites) -> list[Group]:
    """Every outcome of a prior with several sites, in lexicographic order of its sites' supports.

    Parameters
    ----------
    prior : HasSites

    Raises
    ------
    ValueError
        If a site's values cannot be listed, if there are too many outcomes, if sites exist only
        for some values of others, or have values of different shapes.
    """
    groups: list[Group] = []
    entries = 0
    for group in _groups(prior, {}, prior.fixed_sites()):
        entries += _entries(group)
        groups.append(group)
        if entries > MAX_ENTRIES:
            raise ValueError(
                f"{prior.name!r} has too many outcomes of its sites ({', '.join(group.sites)}) to "
                f"list: over {MAX_ENTRIES:,} numbers in all; shorten the sequences, take a site "
                "out, or sample the target"
            )
        if len(groups) > MAX_GROUPS:
            raise ValueError(
                f"{prior.name!r} runs once for each value of the sites before its last, "
                f"{group.site!r}, and there are over {MAX_GROUPS:,}; draw the site that has most "
                "values last"
            )
        _check_alike(prior.name, groups[0], group)
    return groups


def joined(groups: list[Group]) -> dict[str, Array]:
    """The outcomes of all groups: each site's values, with the N outcomes on axis 0."""
    columns: dict[str, list[Array]] = {site: [] for site in groups[0].sites}
    for group in groups:
        for site, value in group.earlier.items():
            xp, shape = namespace(value), (len(group.values), *value.shape)
            columns[site].append(xp.broadcast_to(value[None], shape))
        columns[group.site].append(group.values)
    return {site: namespace(parts[0]).concat(parts) for site, parts in columns.items()}


def _groups(
    prior: HasSites, earlier: dict[str, Array], sites: frozenset[str] | None
) -> Iterator[Group]:
    """Depth first: of each value of the next site all that follows."""
    found = prior.holding(earlier).next_site()
    if found is None:  # another value of the last of the earlier sites has a site after it
        raise _dynamic(prior.name, earlier, None)
    name, law = found
    values = _support(prior.name, name, law)
    if _is_last(prior, earlier, name, values, sites):
        yield Group(earlier, name, values)
        return
    for i in range(len(values)):
        yield from _groups(prior, earlier | {name: values[i]}, sites)


def _is_last(
    prior: HasSites,
    earlier: dict[str, Array],
    name: str,
    values: Array,
    sites: frozenset[str] | None,
) -> bool:
    """Whether no site comes after this one, as far as some of its values show."""
    if sites is not None:
        return sites == {*earlier, name}
    tried = np.unique(np.linspace(0, len(values) - 1, PROBES).astype(int))
    after = (prior.holding(earlier | {name: values[int(i)]}).next_site() for i in tried)
    return all(site is None for site in after)


def _support(program: str, site: str, law: Any) -> Array:
    """Every value of a site."""
    support = listed_support(law)
    if support is not None:
        return support
    model = sequence_model(law)
    if model is None:
        raise ValueError(
            f"the values of latent site {site!r} of program {program!r} cannot be listed: its "
            f"{type(law).__name__} is continuous, unbounded or unknown here; give a categorical, "
            "independent tokens, a Markov policy or a language model, or sample the target"
        )
    if model.count() * model.length > MAX_ENTRIES:
        raise ValueError(
            f"latent site {site!r} of program {program!r} has {model.count():.3g} sequences of "
            f"{model.length} tokens, too many to list beside other sites (at most {MAX_ENTRIES:,} "
            "tokens in all); shorten them, or sample the target"
        )
    return listed_sequences(model)


def _known_support(law: Any) -> Array | None:
    """Values of a site, one at least; None if they cannot be listed."""
    support = listed_support(law)
    if support is not None:
        return support
    model: SequenceModel | None = sequence_model(law)
    return None if model is None else model.outcomes(model.first(), model.like)


def _entries(group: Group) -> int:
    size = sum(int(np.prod(value.shape)) for value in group.earlier.values())
    return len(group.values) * size + int(np.prod(group.values.shape))


def _check_alike(program: str, first: Group, group: Group) -> None:
    """Refuse outcomes that have other sites, or values of other shapes."""
    if group.sites != first.sites:
        raise _dynamic(program, group.earlier, (first.sites, group.sites))
    shapes = [
        {name: tuple(value.shape) for name, value in one.earlier.items()}
        | {one.site: tuple(one.values.shape[1:])}
        for one in (first, group)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the sites of program {program!r} have values of different shapes, {shapes[0]} and "
            f"{shapes[1]}; pad sequences to one length"
        )


def _dynamic(program: str, earlier: dict[str, Array], sites: Any) -> ValueError:
    """The refusal of sites that exist only for some values of others."""
    at = ", ".join(f"{name} = {concrete(x)}" for name, x in earlier.items())
    other = "no further site" if sites is None else f"the sites {sites[1]} beside {sites[0]}"
    return ValueError(
        f"latent sites of program {program!r} exist only for some values of others: at {at} there "
        f"is {other}; sample every site in every run, one that is not needed from any law, and "
        "leave it out of the potential"
    )
