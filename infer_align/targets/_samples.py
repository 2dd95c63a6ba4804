"""Targets that can be drawn from: demonstrations, and distributions as teachers."""

from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from array_api_compat import device

from infer_align._arguments import array, reals
from infer_align._numerics import Array, as_real, concrete, namespace
from infer_align.targets._target import HasLogProb, Target, first_site
from infer_align.targets._weighted import WeightedSample


@dataclass(frozen=True, eq=False)
class Empirical:
    """The law of a data set: its outcomes with their probabilities. It has no density.

    Parameters
    ----------
    outcomes : array or dict of arrays, shape (N, *contexts, ...)
        Of any array library.
    probabilities : array, shape (N, *contexts)
        Non-negative, summing to one over axis 0.
    name : str
        For messages.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.targets import demonstrations
    >>> law = demonstrations(np.array([[0, 1], [1, 1], [0, 0]])).prior
    >>> law.draw(4, np.random.default_rng(0), context_axes=1).shape     # in each of 2 contexts
    (4, 2)
    """

    outcomes: Any
    probabilities: np.ndarray
    name: str = "demonstrations"

    def draw(
        self,
        n: int,
        rng: np.random.Generator,
        *,
        context_axes: int | None = None,
        contexts: Any = None,
    ) -> Any:
        """n outcomes for each context, drawn with replacement, independent between contexts.

        Parameters
        ----------
        n : int
        rng : numpy.random.Generator
        context_axes : int, optional
            How many axes after the first are contexts. Default: those that the weights have.
        contexts : sequence of int, optional
            Which contexts are wanted, of data with one axis of contexts. Default: all.

        Returns
        -------
        array or dict of arrays, shape (n, *contexts, ...)
        """
        size, *known = self.probabilities.shape
        axes = len(known) if context_axes is None else context_axes
        full = tuple(first_site(self.outcomes).shape)[1 : 1 + axes]
        p = self.probabilities.reshape(size, *known, *(1,) * (axes - len(known)))
        p = np.broadcast_to(p, (size, *full)).reshape(size, -1)
        columns, shape = np.arange(p.shape[1]), full
        if contexts is not None and axes:
            columns = np.atleast_1d(np.asarray(contexts))
            shape = (len(columns),)
        rows = np.stack([_invert(p[:, k], rng.random(n)) for k in columns], axis=1)
        flat = (rows * p.shape[1] + columns).reshape(-1)
        pick = lambda y: _taken(y, flat, (n, *shape), 1 + axes)
        if isinstance(self.outcomes, dict):
            return {site: pick(y) for site, y in self.outcomes.items()}
        return pick(self.outcomes)

    def check_contexts(self, shape: tuple[int, ...]) -> None:
        """Refuse a fit whose contexts are not those of the data.

        Parameters
        ----------
        shape : tuple of int
            Of the fit's contexts: the prompts, or the policy's batch shape.

        Raises
        ------
        ValueError
            If the outcomes are not (N, *shape, ...), or the weights have further contexts.
        """
        sites = self.outcomes if isinstance(self.outcomes, dict) else {"": self.outcomes}
        weighted = self.probabilities.ndim - 1
        for outcomes in sites.values():
            found = tuple(outcomes.shape)
            if found[1 : 1 + len(shape)] == tuple(shape) and weighted <= len(shape):
                continue
            raise ValueError(
                f"{self.name!r} has outcomes of shape {found} with weights of shape "
                f"{self.probabilities.shape}, and the fit has contexts of shape {tuple(shape)}; "
                "give demonstrations for each prompt, in the prompts' order: (N, prompts, ...), or "
                "(N, ...) where there are none"
            )

    def log_prob(self, value: Any) -> NoReturn:
        """A data set has no density.

        Parameters
        ----------
        value : array
        """
        raise ValueError(_no_density(self.name))


def demonstrations(outcomes: Any, weights: Any = None, *, name: str = "demonstrations") -> Target:
    r"""Target given by samples of it: demonstrations, or what a sampler returned.

    .. math:: p(y | x) = \sum_i w_i 1[y_i = y] / \sum_i w_i

    It provides ``"samples"`` and no density: fit it with ``estimators.maximum_likelihood()``
    (supervised fine-tuning). With a `WeightedSample` of a target the fit distils that target; with
    rewards as weights it is reward-weighted, with 0/1 weights filtered, with best-of-n draws
    best-of-n distilled.

    Parameters
    ----------
    outcomes : array, dict of arrays, or WeightedSample
        Shape (N, *contexts, ...): N demonstrations for each context, in the form that the policy's
        outcomes have (of a language model: token ids, filled up with EOS to ``max_new_tokens``).
    weights : array, shape (N, *contexts) or (N,), optional
        Non-negative, in any scale. Default: all alike.
    name : str, optional
        For tables and messages.

    Returns
    -------
    Target
        Its ``prior`` is an `Empirical` law; evaluating its density raises.

    Raises
    ------
    ValueError
        For no outcomes, negative weights, weights of another shape, or a context without any
        weight.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.targets import demonstrations
    >>> target = demonstrations(np.array([0, 1, 1]), weights=np.array([2.0, 1.0, 1.0]))
    >>> sorted(target.provides), target.prior.probabilities.tolist()
    (['samples'], [0.5, 0.25, 0.25])
    """
    if isinstance(outcomes, WeightedSample):
        if weights is not None:
            raise ValueError(
                "a WeightedSample has weights of its own: give no others, or give its outcomes"
            )
        law = Empirical(outcomes.outcomes, outcomes.probabilities, name)
    else:
        law = Empirical(outcomes, np.asarray(_weights_of(outcomes, weights)), name)
    total = law.probabilities.sum(axis=0)
    if (short := int(np.sum(~(total > 0)))) or not len(law.probabilities):
        raise ValueError(
            f"{short or 'all'} of the contexts of {name!r} have no demonstration of positive "
            "weight; draw more, or leave these contexts out"
        )
    law = Empirical(law.outcomes, law.probabilities / total, name)

    def no_density(y: Any, *contexts: Any) -> NoReturn:
        raise ValueError(_no_density(name))

    return Target(law, no_density, name, provides=frozenset({"samples"}))


def teacher(prior: Any, *, name: str = "teacher") -> Target:
    """A distribution that can be drawn from, as a target: what distillation fits.

    Parameters
    ----------
    prior : Distribution, or callable from contexts to one
        Normalised; a ``CausalLM`` or a ``TokenProduct`` is such a callable.
    name : str, optional
        For tables and messages.

    Returns
    -------
    Target
        Its potential is 0 and its log Z 0. It provides ``"log_density"`` and ``"samples"``, and
        ``"next_token"`` if the prior says so.

    Examples
    --------
    >>> import jax.numpy as jnp, numpyro.distributions as dist
    >>> from infer_align.targets import teacher
    >>> sorted(teacher(dist.Categorical(probs=jnp.array([0.5, 0.5]))).provides)
    ['log_density', 'samples']
    """

    def zero(y: Any, *contexts: Any) -> Array:
        given = prior if isinstance(prior, HasLogProb) else prior(*contexts)
        event = getattr(given, "event_shape", None)
        if event is None or isinstance(y, dict):
            log_prob = given.log_prob(y)
            return namespace(log_prob).zeros_like(log_prob)
        shape = tuple(y.shape)[: len(y.shape) - len(event)]  # no need to score it twice
        return 0.0 * namespace(y).reshape(y, (*shape, -1))[..., 0]

    more = frozenset(getattr(prior, "provides", ()))
    provides = frozenset({"log_density", "samples"}) | more
    return Target(prior, zero, name, (zero,), log_z=0.0, provides=provides, log_bound=0.0)


def _weights_of(outcomes: Any, weights: Any) -> np.ndarray:
    """Weights of shape (N, *contexts), or (N,) for all contexts alike."""
    first = array("outcomes", first_site(outcomes), need="an array of outcomes on axis 0")
    if weights is None:
        return np.ones(tuple(first.shape)[:1])
    known = concrete(as_real(weights, "weights")) if hasattr(weights, "dtype") else weights
    out = reals("weights", known)
    if out.shape != tuple(first.shape)[: out.ndim] or not out.ndim:
        raise ValueError(
            f"weights of shape {out.shape} do not fit outcomes of shape {tuple(first.shape)}; give "
            "one for each outcome, (N,) or (N, *contexts)"
        )
    if not (np.isfinite(out).all() and (out >= 0).all()):
        raise ValueError("weights of demonstrations must be finite and non-negative; not logs")
    return out


def _invert(p: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Where the cumulative distribution passes each uniform number, in [0, 1)."""
    cumulative = np.cumsum(p)
    return np.searchsorted(cumulative / cumulative[-1], uniforms, side="right")


def _taken(y: Array, flat: np.ndarray, shape: tuple[int, ...], leading: int) -> Array:
    """Rows of y, its first ``leading`` axes flattened, in another shape."""
    xp = namespace(y)
    event = tuple(y.shape)[leading:]
    index = xp.asarray(flat, device=device(y))
    rows = xp.take(xp.reshape(y, (-1, *event)), index, axis=0)
    return xp.reshape(rows, (*shape, *event))


def _no_density(name: str) -> str:
    return (
        f"{name!r} is given by samples and has no log-density: fit it with "
        "estimators.maximum_likelihood(), which needs samples only, or declare a target with a "
        "density: a program, tilt(), condition() or product()"
    )
