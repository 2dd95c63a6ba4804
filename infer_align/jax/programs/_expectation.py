r"""`expectation`: an objective's value and gradient, both unbiased, by any choice of estimators.

For an objective that draws x_1, ..., x_n and returns f, with w the probability of the values of the
sites that are enumerated, and the other sites drawn,

.. math:: \nabla E[f] = E\Big[\nabla \sum_e w_e f_e + \sum_e w_e (f_e - b) \nabla \log q_e
          + \sum_{u,v} f_{u=v} \nabla q_u(v)\Big]

over joint values e of the enumerated sites, the score sites' log q, and for each element u of a
local site its alternative values v, for which the objective runs again. The weight of a run is its
own: an enumerated site below u has other probabilities where u has another value.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from infer_align._arguments import count
from infer_align._threads import alone
from infer_align.jax.programs._frame import (
    Frame,
    Override,
    Plan,
    Reports,
    Site,
    configurations,
    default_estimator,
    joint_values,
)
from infer_align.jax.programs._lanes import lanes_of
from infer_align.jax.programs._loops import taken
from infer_align.jax.programs._noise import Recorder, Supply
from infer_align.jax.programs.sites import ALL, SiteEstimator

__all__ = ["Expectation", "expectation"]

Array = Any
Estimators = Mapping[str, SiteEstimator]
Lead = dict[str, tuple[int, ...]]
"""By uid, the axes that `vmap` and ``scan`` put in front of a site's elements."""
stop = jax.lax.stop_gradient


def expectation(
    objective: Callable[..., Any], estimators: Estimators | None = None, *, n: int = 1
) -> "Expectation":
    """The expectation of an objective over all that it draws, as a function to differentiate.

    Parameters
    ----------
    objective : callable
        ``objective(*args)`` -> scalar. It draws with ``numpyro.sample``, itself or through
        NumPyro programs (`simulate`, `density`).
    estimators : mapping from site to SiteEstimator, optional
        One that is named here comes first, then ``infer={"gradient": ...}`` of the site. If neither
        says: `reparam` where the distribution has such a sampler. Where not, `score` if no
        estimator is given for any site; else an error, since one was forgotten.
    n : int
        Independent evaluations that are averaged. `score_loo` raises it to what it needs.

    Returns
    -------
    Expectation
        ``loss(key, *args)``. ``jax.grad`` of it is unbiased for the gradient, unless an estimator
        is marked biased. First derivatives only.

    Raises
    ------
    ValueError
        When called: for a name that is no site's, for a site whose distribution the estimator does
        not know, and for sites in transformations of JAX that `vmap` and ``scan`` do not cover.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from infer_align.jax import programs
    >>> def objective(p):
    ...     heads = numpyro.sample("coin", dist.Bernoulli(p))
    ...     noise = numpyro.sample("noise", dist.Normal(heads, p))
    ...     return noise**2
    >>> loss = programs.expectation(objective, {"coin": programs.enumerate_})
    >>> print(loss.describe(0.3))
    site   distribution    elements  estimator
    coin   BernoulliProbs  1         enumerate
    noise  Normal          1         reparam (default)
    >>> keys = jax.random.split(jax.random.key(0), 10_000)
    >>> slopes = jax.vmap(jax.grad(loss, argnums=1), (0, None))(keys, 0.3)
    >>> round(float(slopes.mean()), 1)  # E = p + p², slope 1 + 2p
    1.6
    """
    estimators = None if estimators is None else dict(estimators)
    for name, estimator in (estimators or {}).items():
        if not isinstance(estimator, SiteEstimator):
            known = ", ".join(one.name.partition("(")[0] for one in ALL)
            raise TypeError(
                f"site {name!r} has the estimator {estimator!r}; needed is one of "
                f"infer_align.jax.programs: {known}"
            )
    n = count("n, the number of evaluations,", n)
    if not callable(objective):
        raise TypeError(
            f"an objective is a function that draws and returns a number, got "
            f"{type(objective).__name__}"
        )
    return Expectation(objective, estimators, n)


@dataclass(frozen=True, eq=False)
class Expectation:
    """Made by `expectation`: call it with a key and the objective's arguments."""

    objective: Callable[..., Any]
    estimators: Estimators | None
    n: int

    def __call__(self, key: Array, *args: Any, baselines: Mapping[str, Any] | None = None) -> Any:
        """An unbiased estimate, whose gradient in the arguments is unbiased too.

        Parameters
        ----------
        key : PRNG key
        *args : Any
            Of the objective.
        baselines : mapping from site to number, optional
            Of `score_running`. Default: 0.
        """
        with alone():
            plan, lead = self._plan(key, args)
            n = self._replicates(plan)
            terms = lambda numbers: self._terms(plan, lead, numbers, args)
            if n == 1:
                each = jax.tree.map(lambda x: x[None], terms(plan.needs[""].supply(key)))
            else:
                each = jax.vmap(terms, axis_size=n)(plan.needs[""].supply(key, n))
            return _combined(each, plan, args, baselines or {}, n)

    def sites(self, *args: Any) -> list[Site]:
        """The sites in the order of the program, with their estimators.

        Parameters
        ----------
        *args : Any
            Of the objective.
        """
        return list(self._plan(jax.random.key(0), args)[0].sites.values())

    def decays(self, *args: Any) -> dict[str, float]:
        """Decay of each running baseline, by site: what a caller has to carry from call to call.

        Parameters
        ----------
        *args : Any
            Of the objective.
        """
        sites = self.sites(*args)
        return {s.name: s.estimator.decay for s in sites if s.estimator.decay is not None}

    def joint_values(self, *args: Any) -> int:
        """Joint values of the sites that are enumerated: runs of the objective in one estimate.

        Parameters
        ----------
        *args : Any
            Of the objective.
        """
        return joint_values(*self._plan(jax.random.key(0), args))

    def describe(self, *args: Any) -> str:
        """A table of the sites and how the gradient through each is estimated.

        Parameters
        ----------
        *args : Any
            Of the objective.
        """
        plan, lead = self._plan(jax.random.key(0), args)
        rows = [("site", "distribution", "elements", "estimator")]
        for uid, site in plan.sites.items():
            size = math.prod((*lead[uid], *site.shape))
            estimator = f"{site.estimator!r}" + " (default)" * site.default
            rows.append((uid, site.family, str(size), estimator))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join(
            "  ".join([*(x.ljust(w) for x, w in zip(row, widths, strict=False)), row[3]])
            for row in rows
        )

    def _plan(self, key: Array, args: tuple[Any, ...]) -> tuple[Plan, Lead]:
        """The sites, found without computing anything, and the axes in front of each."""
        plan = Plan(self.choose)

        def run(key: Array, args: tuple[Any, ...]) -> Any:
            with Frame(plan, Recorder(key), {}) as frame:
                out = self.objective(*args)
            return _scalar(out), frame.reports

        with alone():
            _, reports = jax.eval_shape(run, key, args)
        plan.complete = True
        known = {site.name for site in plan.sites.values()}
        if unknown := [name for name in self.estimators or {} if name not in known]:
            raise ValueError(
                f"an estimator is given for site {unknown[0]!r}, which the objective does not "
                f"draw; its sites are {', '.join(sorted(known)) or 'none'}"
            )
        self._check_bound(plan)
        return plan, _leading(plan, reports)

    def choose(self, name: str, d: Any, infer: Mapping[str, Any]) -> tuple[SiteEstimator, bool]:
        """The estimator of a site, and whether it is a default.

        Parameters
        ----------
        name : str
        d : Distribution
        infer : mapping
            The site's own.
        """
        if self.estimators is not None and name in self.estimators:
            return self.estimators[name], False
        if "gradient" in infer:
            if not isinstance(infer["gradient"], SiteEstimator):
                raise TypeError(
                    f'site {name!r} has infer={{"gradient": {infer["gradient"]!r}}}; needed is an '
                    "estimator of infer_align.jax.programs"
                )
            return infer["gradient"], False
        if self.estimators is not None and not d.has_rsample:
            raise ValueError(
                f"site {name!r} ({type(d).__name__}) cannot be reparameterised and no estimator is "
                f"given for it; add {name!r}: score (or score_loo(n), enumerate_, "
                "local_expectation)"
            )
        return default_estimator(d), True

    def _check_bound(self, plan: Plan) -> None:
        biased = [site for site in plan.sites.values() if site.estimator.bias]
        if biased and plan.bounds:
            site = biased[0]
            raise ValueError(
                f"site {site.name!r} has the estimator {site.estimator.name}, which is biased "
                f"({site.estimator.bias}), and {plan.bounds[0]} promises a bound; use score, "
                "enumerate_ or local_expectation there"
            )

    def _replicates(self, plan: Plan) -> int:
        wanted = {s.estimator.replicates for s in plan.sites.values()} - {1}
        if len(wanted) > 1:
            raise ValueError(
                f"leave-one-out baselines of {sorted(wanted)} evaluations: all sites share the "
                "evaluations, so give the same number"
            )
        needed = wanted.pop() if wanted else 1
        if self.n not in (1, needed) and needed > 1:
            raise ValueError(
                f"n={self.n} evaluations, and score_loo({needed}) needs {needed}; give the same "
                "number, or leave n out"
            )
        return max(self.n, needed)

    def _terms(self, plan: Plan, lead: Lead, numbers: Supply, args: tuple[Any, ...]) -> "_Terms":
        table = configurations(plan, lead)
        if not table:
            return self._leaf(plan, lead, numbers, args, {})
        leaves = jax.vmap(lambda e: self._leaf(plan, lead, numbers, args, e))(table)
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), leaves)

    def _leaf(
        self, plan: Plan, lead: Lead, numbers: Supply, args: tuple[Any, ...],
        indices: dict[str, Array],
    ) -> "_Terms":  # fmt: skip
        """One joint value of the enumerated sites."""
        fixed = {uid: Override(index, index) for uid, index in indices.items()}
        value, weight, reports = self._run(plan, numbers, args, fixed, alternatives=True)
        scores = {u: jnp.sum(x) for u, x in reports["log_score"].items()}
        zero = {u: x - stop(x) for u, x in scores.items()}
        total = value * weight
        local = jnp.zeros_like(total)
        if reports["alternatives"]:
            local = self._local(plan, lead, numbers, args, fixed, reports, stop(total))
        return _Terms(
            total, stop(total) * sum(zero.values(), jnp.zeros_like(total)) + local,
            {u: stop(weight) * x for u, x in zero.items()},
        )  # fmt: skip

    def _run(
        self, plan: Plan, numbers: Supply, args: tuple[Any, ...], overrides: dict[str, Override], *,
        alternatives: bool,
    ) -> tuple[Array, Array, Reports]:  # fmt: skip
        """Value of the objective, probability of the enumerated values, reports."""
        with Frame(plan, taken(numbers), overrides, alternatives=alternatives) as frame:
            value = _scalar(self.objective(*args))
        logs = frame.reports["log_weight"].values()
        weight = jnp.exp(sum((jnp.sum(x) for x in logs), jnp.zeros_like(value)))
        # What has probability 0 may have no value, and 0 · inf is NaN.
        return jnp.where(weight > 0, value, 0.0), weight, frame.reports

    def _local(
        self, plan: Plan, lead: Lead, numbers: Supply, args: tuple[Any, ...],
        fixed: dict[str, Override], reports: Reports, own: Array,
    ) -> Array:  # fmt: skip
        """Σ over elements of local sites, and over their alternatives."""
        shapes = {uid: (lead[uid], plan.sites[uid].shape) for uid in reports["alternatives"]}
        lanes = lanes_of(reports["alternatives"], shapes)

        def again(lane: Array, values: dict[Any, Array]) -> Array:
            overrides = fixed | lanes.overrides(lane, values)
            value, weight, _ = self._run(plan, numbers, args, overrides, alternatives=False)
            return stop(value * weight)

        each = jax.vmap(again)(jnp.arange(len(lanes.weights)), lanes.values)
        return own * lanes.own + jnp.sum(each * lanes.weights)


class _Terms(NamedTuple):
    """Of one evaluation, summed over the enumerated values."""

    value: Array
    zero: Array
    """Zero, whose gradient is that of the score sites without baseline, and of the local ones."""
    scores: dict[str, Array]
    """Zero, whose gradient a baseline multiplies, by uid."""


def _combined(
    each: _Terms, plan: Plan, args: tuple[Any, ...], baselines: Mapping[str, Any], n: int
) -> Array:
    """Mean over the evaluations (n,), less the baselines."""
    value = each.value
    zero = each.zero
    for uid, score in each.scores.items():
        estimator = plan.sites[uid].estimator
        if estimator.replicates > 1:
            others = (jnp.sum(value) - value) / (n - 1)
            zero = zero - stop(others) * score
        elif estimator.decay is not None:
            zero = zero - stop(baselines.get(plan.sites[uid].name, 0.0)) * score
        elif estimator.baseline is not None:
            given = estimator.baseline
            zero = zero - stop(given(*args) if callable(given) else given) * score
    return jnp.mean(value + zero)


def _scalar(out: Any) -> Array:
    if not isinstance(out, jax.Array | np.ndarray | np.generic | float | int):
        raise ValueError(f"an objective returns a number, got {type(out).__name__}")
    if jnp.shape(out) != ():
        raise ValueError(
            f"an objective returns a number, got shape {jnp.shape(out)}; sum or average it"
        )
    return jnp.asarray(out, dtype=jnp.result_type(float))


def _leading(plan: Plan, reports: Reports) -> Lead:
    """Of every site, the axes that `vmap` and ``scan`` put in front."""
    return {
        uid: tuple(x.shape[: x.ndim - len(plan.sites[uid].shape)])
        for uid, x in reports["drawn"].items()
    }
