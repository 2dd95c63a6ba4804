r"""NumPyro programs as targets.

.. math:: \log P(y | x) = \sum_{\text{latent } s} \log p_s(y_s) + \sum_{\text{factor, observed}}

A program describes one outcome: it is evaluated with ``jax.vmap`` over axis 0, and over contexts
through its arguments, and every site is summed. A batch of outcomes is never substituted as such,
so a ``.sum()`` in the program can only run over the outcome's own axes.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.primitives import Messenger

from infer_align import _supports
from infer_align._threads import alone
from infer_align.targets import Constrained, Target, collecting

__all__ = ["ProgramPrior", "target"]

Program = Callable[..., Any]
Outcome = Any
"""An array, or for a program of several latent sites a dict from site to array."""
Moments = dict[str, tuple[Any, float]]
"""Of each moment: the feature's values, and the desired mean."""


def target(
    program: Program | Target,
    *,
    name: str | None = None,
    context_ndim: int = 1,
    log_bound: Any = None,
) -> Target:
    r"""Target declared by a NumPyro program: log P(y|x) is the sum of its sites' log-probs.

    Latent ``sample`` sites are the prior; factors and observed sites are the potential.

    Parameters
    ----------
    program : callable
        A NumPyro program of one outcome, and of one context if it takes arguments. With one
        latent site an outcome is that site's value, with several a dict from site to value. A
        `Target` passes through.
    name : str, optional
        Default: the program's name.
    context_ndim : int
        Number of leading axes of every argument that index contexts. 0 passes the arguments on
        as they are: one context, without an axis.
    log_bound : float or array of shape (*contexts), optional
        The largest value of the sum of factors and observed sites, where it is known: the largest
        reward over beta, 0 of constraints and likelihoods of discrete data. See `Target`.

    Returns
    -------
    Target
        ``log_density(y, *contexts)`` of shape (n, *contexts), for y of shape (n, *contexts, ...)
        and arguments of shape (*contexts, ...). Differentiable, and safe under ``jit``.

    Requirements
    ------------
    JAX code throughout (a Python reward goes into ``jax.pure_callback``). Latent sites have
    normalised distributions: whole plates, no masks. Parameters (``numpyro.param``) are constants
    at their initial values; random initial values, and ``numpyro.prng_key``, are the same at
    every evaluation.
    A value outside the support of its site, observed ones too, has log-density −inf.

    Raises
    ------
    ValueError
        When evaluated: for a program without a latent site, a subsampled plate, a masked latent
        site, or outcomes and contexts whose shapes are not the program's.

    Examples
    --------
    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from infer_align.jax import target
    >>> def program():
    ...     y = numpyro.sample("y", dist.Categorical(jnp.array([0.5, 0.5])))
    ...     numpyro.factor("reward", 2.0 * y)
    >>> [round(float(x), 4) for x in target(program).log_density(jnp.array([0, 1]))]
    [-0.6931, 1.3069]
    """
    if isinstance(program, Target):
        return program if log_bound is None else replace(program, log_bound=log_bound)
    if not callable(program):
        raise TypeError(f"a target is a NumPyro program or a Target, got {type(program).__name__}")
    if context_ndim < 0:
        raise ValueError(f"context_ndim must be 0 or more, got {context_ndim}")
    label = name or getattr(program, "__name__", "program")

    signature = inspect.signature(program)

    def prior(*contexts: Any) -> ProgramPrior:
        try:
            signature.bind(*contexts)
        except TypeError:
            raise TypeError(
                f"program {label!r} is called with {len(contexts)} contexts and takes {signature}; "
                f"give one array for each argument: contexts={tuple(signature.parameters)}"
            ) from None
        return ProgramPrior(program, contexts, label, context_ndim)

    takes_contexts = bool(signature.parameters)
    terms = _Terms(prior)
    return Target(
        prior if takes_contexts else prior(), Constrained(terms, label), label, log_bound=log_bound
    )


@dataclass(frozen=True)
class _Terms:
    """Log-potential and moments of a program; see `ProgramPrior.terms`."""

    prior: Callable[..., "ProgramPrior"]

    def __call__(self, y: Outcome, *contexts: Any) -> tuple[jax.Array, Moments]:
        return self.prior(*contexts).terms(y)

    def holding(self, values: dict[str, Any]) -> "_Terms":
        """Those of the program whose named sites have these values."""
        return _Terms(lambda *contexts: self.prior(*contexts).holding(values))


@dataclass(frozen=True)
class ProgramPrior:
    """Distribution of a program's latent sites, given its arguments.

    Parameters
    ----------
    program : callable
        A NumPyro program of one outcome.
    contexts : tuple
        Its arguments, with leading axes (*contexts).
    name : str
        For messages.
    context_ndim : int
        Number of these axes.
    held : dict, optional
        Values of latent sites that are not asked for any more, each of one outcome; see `holding`.
    """

    program: Program
    contexts: tuple[Any, ...]
    name: str
    context_ndim: int = 1
    held: dict[str, Any] = field(default_factory=dict)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the contexts; () for a program without arguments."""
        shapes = {self._context_shape(leaf) for leaf in jax.tree.leaves(self.contexts)}
        if len(shapes) > 1:
            raise ValueError(
                f"the arguments of program {self.name!r} have contexts of shapes "
                f"{sorted(shapes)} on their {self.context_ndim} leading axes; give one entry a "
                "context in each, and close over what the contexts share"
            )
        return shapes.pop() if shapes else ()

    def site(self) -> Any:
        """The distribution of the only latent site, of the first context.

        Returns
        -------
        Distribution

        Raises
        ------
        ValueError
            If the program has several latent sites.
        """
        latent = self.latent()
        if len(latent) != 1:
            raise ValueError(
                f"program {self.name!r} has {len(latent)} latent sites "
                f"({', '.join(latent)}), and this needs one whose distribution "
                "is the prior: draw the whole outcome at one site"
            )
        return next(iter(latent.values()))

    def latent(self, value: Outcome | None = None) -> dict[str, Any]:
        """The distributions of the latent sites, of the first context.

        Parameters
        ----------
        value : array or dict, optional
            One outcome. Default: one that is drawn.

        Returns
        -------
        dict from site to Distribution
        """
        first = (0,) * len(self.batch_shape)
        context = jax.tree.map(lambda x: jnp.asarray(x)[first], self.contexts)
        values = {} if value is None else self._by_site(value, self._latent_shapes())
        sites = self._trace(jax.random.key(0), values, context)
        return {s["name"]: s["fn"] for s in sites if s["type"] == "sample" and not s["is_observed"]}

    def holding(self, values: dict[str, Any]) -> "ProgramPrior":
        """The law of the other latent sites beside these, whose log-probabilities count in it.

        Parameters
        ----------
        values : dict
            Of each site one value, the same in every context. They are no tracers, so that the
            program may branch on them.

        Returns
        -------
        ProgramPrior
        """
        return replace(self, held=values)

    def fixed_sites(self) -> frozenset[str] | None:
        """The latent sites, if no Python branch depends on their values; else None."""
        try:
            return frozenset(self._latent_shapes())
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):  # of a traced value
            return None

    def next_site(self) -> tuple[str, Any] | None:
        """The first latent site that is not held and its distribution, of the first context.

        The program runs up to there, and nothing is drawn. None: every latent site is held.
        """
        first = (0,) * len(self.batch_shape)
        context = jax.tree.map(lambda x: jnp.asarray(x)[first], self.contexts)
        listener = _NextSite(self)
        with alone(), handlers.block(), listener, collecting():
            try:
                run = handlers.seed(self.program, jax.random.key(0))
                handlers.substitute(run, data=self.held)(*context)
            except _FoundError:
                return listener.found
        return None

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> Outcome:
        """Outcomes drawn by running the program: an array, or a dict of several sites.

        Parameters
        ----------
        key : PRNG key
        sample_shape : tuple of int
            ``(n,)`` for n outcomes.

        Returns
        -------
        array or dict, shape (*sample_shape, *contexts, ...)
        """
        sites = self._latent_shapes()

        def one(key: jax.Array, *contexts: Any) -> Outcome:
            # Parameters with random initial values are those that log_prob sees.
            values = {
                site["name"]: site["value"]
                for site in self._trace(jax.random.key(0), {}, contexts)
                if site["type"] == "param"
            }
            drawn = {site["name"]: site["value"] for site in self._trace(key, values, contexts)}
            return {name: drawn[name] for name in sites}

        keys = jax.random.split(key, (*sample_shape, *self.batch_shape))
        draws = self._vmapped(one, len(sample_shape))(keys, *self.contexts)
        return draws if len(sites) > 1 else next(iter(draws.values()))

    def log_prob(self, value: Outcome) -> jax.Array:
        """Sum of the latent sites' normalised log-probs.

        Parameters
        ----------
        value : array or dict, shape (*sample_shape, *contexts, ...)

        Returns
        -------
        array, shape (*sample_shape, *contexts)
        """
        return self._log_terms(value)[0]

    def log_potential(self, value: Outcome) -> jax.Array:
        """Sum of the factors and of the observed sites' log-probs; moments not included.

        Parameters
        ----------
        value : array or dict, shape (n, *contexts, ...)

        Returns
        -------
        array, shape (n, *contexts)
        """
        return self.terms(value)[0]

    def terms(self, value: Outcome) -> tuple[jax.Array, Moments]:
        """Log-potential, and the values and means of the moments, in one run of the program.

        Parameters
        ----------
        value : array or dict, shape (n, *contexts, ...)

        Returns
        -------
        log_potential : array, shape (n, *contexts)
        moments : dict from name to (array of shape (n, *contexts), mean)
        """
        _, potential, values, means = self._log_terms(value, sample_ndim=1)
        return potential, {name: (values[name], mean) for name, mean in means.items()}

    def _log_terms(
        self, value: Outcome, *, sample_ndim: int | None = None
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array], dict[str, float]]:
        """Log prior, log potential and moments, each of shape (*sample_shape, *contexts)."""
        shapes = self._latent_shapes()
        values = self._by_site(value, shapes)
        ndim = self._sample_ndim(values, shapes, sample_ndim)
        means: dict[str, float] = {}

        def one(values: dict[str, jax.Array], *contexts: Any) -> tuple[Any, ...]:
            declared: Moments = {}
            sites = self._trace(jax.random.key(0), values, contexts, declared)
            self._refuse_more_sites(sites, values)
            means.update((name, mean) for name, (_, mean) in declared.items())
            features = {name: self._scalar(name, x) for name, (x, _) in declared.items()}
            return *_log_terms(sites), features

        return *self._vmapped(one, ndim)(values, *self.contexts), means

    def _scalar(self, name: str, value: Any) -> jax.Array:
        if jnp.shape(value):
            raise ValueError(
                f"the feature of moment {name!r} in program {self.name!r} has shape "
                f"{jnp.shape(value)}; a program describes one outcome, whose feature is one "
                "number: reduce it with .sum(), .mean() or .any()"
            )
        return jnp.asarray(value)

    def _vmapped(self, one: Callable[..., Any], sample_ndim: int) -> Callable[..., Any]:
        """A function of (one outcome, *one context) over all outcomes and contexts."""
        for _ in self.batch_shape:
            one = jax.vmap(one)
        shared = (None,) * len(self.contexts)
        for _ in range(sample_ndim):
            one = jax.vmap(one, in_axes=(0, *shared))
        return one

    def _trace(
        self,
        key: jax.Array,
        values: dict[str, jax.Array],
        contexts: tuple[Any, ...],
        moments: Moments | None = None,
    ) -> list[dict[str, Any]]:
        """The sites of one run of the program; nothing leaks to handlers around it.

        What it declares with `infer_align.moment` is put into ``moments``, if wanted.
        """
        with alone(), handlers.block(), collecting() as found:
            known = self.held | values
            run = handlers.substitute(handlers.seed(self.program, key), data=known)
            sites = list(handlers.trace(run).get_trace(*contexts).values())
        if moments is not None:
            moments.update(found)
        for site in sites:
            _refuse_random_density(site, self.name)
        return sites

    def _latent_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each latent site's value in one outcome, found without computing anything."""
        if self.held:  # under `eval_shape` the program could not branch on them
            found = self.next_site()
            return {} if found is None else {found[0]: tuple(found[1].shape())}
        first = (0,) * len(self.batch_shape)
        context = jax.tree.map(lambda x: jnp.asarray(x)[first], self.contexts)
        values = lambda: {
            site["name"]: site["value"]
            for site in self._trace(jax.random.key(0), {}, context)
            if site["type"] == "sample" and not site["is_observed"]
        }
        shapes = {name: tuple(x.shape) for name, x in jax.eval_shape(values).items()}
        if not shapes:
            raise ValueError(
                f"program {self.name!r} has no latent sample site, so it has no prior; draw the "
                'outcome with numpyro.sample("y", distribution)'
            )
        return shapes

    def _refuse_more_sites(self, sites: list[dict[str, Any]], values: dict[str, Any]) -> None:
        """Refuse a latent site without a value, which would be drawn."""
        for site in sites:
            latent = site["type"] == "sample" and not site["is_observed"]
            if latent and site["name"] not in self.held | values:
                raise ValueError(
                    f"latent site {site['name']!r} of program {self.name!r} exists only for some "
                    "values of the sites before it; sample every site in every run"
                )

    def _by_site(self, value: Outcome, shapes: dict[str, tuple[int, ...]]) -> dict[str, jax.Array]:
        if not isinstance(value, dict):
            if len(shapes) > 1:
                raise ValueError(
                    f"program {self.name!r} has several latent sites ({', '.join(shapes)}), so "
                    "an outcome is a dict from site to value; got one array"
                )
            value = {name: value for name in shapes}
        if set(value) != set(shapes):
            raise ValueError(
                f"the latent sites of program {self.name!r} are {sorted(shapes)} and the outcome "
                f"has {sorted(value)}; give a value to each, and to no other"
            )
        return {name: jnp.asarray(value[name]) for name in shapes}

    def _sample_ndim(
        self,
        values: dict[str, jax.Array],
        shapes: dict[str, tuple[int, ...]],
        wanted: int | None,
    ) -> int:
        """Number of sample axes of the outcomes; refuses shapes that are not the program's."""
        contexts = self.batch_shape
        leading = set()
        for name, event in shapes.items():
            shape = tuple(values[name].shape)
            tail = contexts + event
            samples = shape[: len(shape) - len(tail)]
            if shape != samples + tail or (wanted is not None and len(samples) != wanted):
                raise ValueError(
                    f"site {name!r} of program {self.name!r} has values of shape {shape}; one "
                    f"outcome of one context has shape {event} and the contexts {contexts}, so "
                    f"needed is {('n', *tail)}"
                )
            leading.add(samples)
        if len(leading) > 1:
            raise ValueError(
                f"the sites of program {self.name!r} have different numbers of outcomes: "
                f"{ {name: tuple(values[name].shape) for name in shapes} }"
            )
        return len(leading.pop())

    def _context_shape(self, leaf: Any) -> tuple[int, ...]:
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | float | int):
            raise ValueError(
                f"program {self.name!r} got a context of type {type(leaf).__name__}; contexts "
                "are arrays (for text: its token ids)"
            )
        shape = tuple(np.shape(leaf))
        if len(shape) < self.context_ndim or 0 in shape[: self.context_ndim]:
            raise ValueError(
                f"an argument of program {self.name!r} has shape {shape} and needs "
                f"{self.context_ndim} leading axes for at least one context; for one context "
                "without an axis use target(program, context_ndim=0)"
            )
        return shape[: self.context_ndim]


def _refuse_random_density(site: dict[str, Any], program: str) -> None:
    """Refuse a subsampled plate, and a latent site that is masked."""
    if site["type"] == "plate":
        size, drawn = site["args"]
        if drawn not in (None, size):
            raise ValueError(
                f"plate {site['name']!r} of program {program!r} draws a subsample of "
                f"{drawn} of {size}, which makes the density random; use the whole plate"
            )
    latent = site["type"] == "sample" and not site["is_observed"]
    if latent and _is_masked(site["fn"]):
        raise ValueError(
            f"latent site {site['name']!r} of program {program!r} is masked, so its "
            "log-probabilities do not sum to one; give it a distribution over what can be "
            "drawn, and mask the factor instead"
        )


class _FoundError(BaseException):
    """The site that was looked for; no `except Exception` of the program holds it back."""


class _NextSite(Messenger):
    """Ends a run at the first latent site without a value, which is ``found``."""

    def __init__(self, prior: ProgramPrior) -> None:
        super().__init__()
        self.prior = prior
        self.seen: set[str] = set()
        self.found: tuple[str, Any] | None = None

    def process_message(self, msg: Any) -> None:
        _refuse_random_density(msg, self.prior.name)
        if msg["type"] != "sample":
            return
        name, program = msg["name"], self.prior.name
        if name in self.seen and (name in self.prior.held or not msg["is_observed"]):
            raise ValueError(
                f"program {program!r} has two sites named {name!r}; give each its own name"
            )
        self.seen.add(name)
        if msg["is_observed"]:
            return
        if msg["fn"].batch_shape and self.prior.held:
            raise ValueError(
                f"latent site {name!r} of program {program!r} has batch shape "
                f"{tuple(msg['fn'].batch_shape)}, of a plate perhaps; needed is one outcome: "
                ".expand([size]).to_event(1) instead of the plate"
            )
        if msg["value"] is None:
            self.found = name, msg["fn"]
            raise _FoundError


def _log_terms(sites: list[dict[str, Any]]) -> tuple[jax.Array, jax.Array]:
    """Log prior and log potential of one run: every site summed, as NumPyro's log density."""
    prior, potential = jnp.zeros(()), jnp.zeros(())
    for site in sites:
        if site["type"] != "sample":
            continue
        log_prob = _supports.log_prob(site["fn"], jnp.asarray(site["value"]))
        scale = 1.0 if site["scale"] is None else site["scale"]
        if site["is_observed"]:
            potential = potential + jnp.sum(scale * log_prob)
            continue
        prior = prior + jnp.sum(log_prob)
        if site["scale"] is not None:  # the prior stays normalised; the potential has the rest
            rest = jnp.where(log_prob > -jnp.inf, (scale - 1) * log_prob, 0.0)
            potential = potential + jnp.sum(rest)
    return prior, potential


def _is_masked(fn: Any) -> bool:
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution):
        fn = fn.base_dist
    return isinstance(fn, dist.MaskedDistribution) and fn._mask is not True
