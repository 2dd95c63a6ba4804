"""A target beside the sequence model of its prior, and its potential on token ids."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from infer_align._numerics import Array, check_defined, concrete, namespace
from infer_align.exact._automaton import Automaton
from infer_align.programs import as_target
from infer_align.spaces.sequences import HasSite, SequenceModel, sequence_model
from infer_align.spaces.sites import second_site
from infer_align.targets import Target

CHUNK = 1_000_000
"""Tokens that a potential is evaluated on at once."""


class Unfit(ValueError):
    """An engine does not fit a target, and why."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What the engines work on.

    Parameters
    ----------
    target : Target
    contexts : tuple
        What it is conditioned on.
    model : SequenceModel
        Of its prior.
    """

    target: Target
    contexts: tuple[Any, ...]
    model: SequenceModel

    def single(self) -> None:
        """Refuse several contexts."""
        shape = tuple(getattr(self.target.given(*self.contexts), "batch_shape", ()))
        if shape:
            raise Unfit(f"contexts of shape {shape}; solve one context at a time, without an axis")

    @cached_property
    def like(self) -> Array:
        """An array of the target's library, of its device and precision."""
        return self.model.like

    @cached_property
    def automata(self) -> tuple[Automaton, ...]:
        """Factors of the target that are automata."""
        return tuple(f for f in self.target.factors if isinstance(f, Automaton))

    def potential(self, tokens: np.ndarray, *, automata: bool = True) -> Array:
        """Log-potentials of sequences (n, m), shape (n,); without the automata's, if asked."""
        xp = namespace(self.like)
        rows = max(1, CHUNK // tokens.shape[1])
        parts = []
        for start in range(0, len(tokens), rows):
            chunk = tokens[start : start + rows]
            # Few different shapes: JAX compiles a program anew for each.
            extra = (1 << (len(chunk) - 1).bit_length()) - len(chunk)
            padded = np.concatenate([chunk, np.repeat(chunk[-1:], extra, axis=0)])
            y = self.model.outcomes(padded, self.like)
            values = self._evaluate(y, automata=automata)[: len(chunk)]
            name = f"the log-potential of target {self.target.name!r}"
            parts.append(check_defined(values, name))
        return xp.concat(parts)

    def _evaluate(self, y: Array, *, automata: bool) -> Array:
        if automata or not self.automata:
            return self.target.log_potential(y, *self.contexts)
        rest = [f for f in self.target.factors if not isinstance(f, Automaton)]
        nothing = namespace(y).zeros_like(self.target.given(*self.contexts).log_prob(y))
        return sum((f(y, *self.contexts) for f in rest), nothing)

    def agree(self, a: Array, b: Array) -> np.ndarray:
        """Whether potentials are equal but for the rounding of their precision, shape (n,)."""
        left, right = concrete(a), concrete(b)
        if left is None or right is None:
            raise Unfit(
                "the potential's values are not known inside jax.jit, so that its form cannot be "
                "checked; solve under jax.grad without jit"
            )
        tolerance = 1e-9 if left.dtype == np.float64 else 1e-4
        near = np.isclose(left, right, rtol=tolerance, atol=tolerance)
        return np.asarray((left == right) | near)


def distribution_of(target: Target, contexts: tuple[Any, ...]) -> Any:
    """The distribution of a target's only latent site, given its contexts.

    Raises
    ------
    ValueError
        If there is a second.
    """
    prior = target.given(*contexts)
    if second := second_site(prior):
        raise ValueError(
            f"target {target.name!r} has another latent site, {second!r}, after its first, and "
            "this takes one: draw the whole outcome at one site, or use exact.solve, which lists "
            "the outcomes of several"
        )
    return law_of(prior)


def law_of(prior: Any) -> Any:
    """The distribution of a prior's only latent site."""
    return prior.site() if isinstance(prior, HasSite) else prior


def problem_of(target: Any, contexts: tuple[Any, ...], distribution: Any = None) -> Problem:
    """A target and its prior's sequence model; the prior's distribution if it is known already.

    Raises
    ------
    ValueError
        If the prior is none over token sequences.
    """
    target = as_target(target, *contexts)
    if distribution is None:
        distribution = distribution_of(target, contexts)
    model = sequence_model(distribution)
    if model is None:
        raise ValueError(
            f"the prior of target {target.name!r} is a {type(distribution).__name__}, which is not "
            "known here as a finite set of outcomes; give a categorical, independent tokens, a "
            "Markov policy or a language model, or list the outcomes: Space(outcomes)"
        )
    return Problem(target, contexts, model)
