"""One run of an objective: every random choice is made here, and reported.

A frame is the outermost handler around a program. It gives each latent site its value, by the
site's estimator, and keeps what the gradient needs. `vmap` and `scan` open an inner frame around
what they repeat, whose reports come back with the axis in front. A site that is reached in any
other repetition or transformation of JAX is refused: it would be drawn once for all of it, and its
reports would be lost.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.extend.core import get_opaque_trace_state
from numpyro.primitives import Messenger

from infer_align.jax._support import refuse_moving_support
from infer_align.jax.programs._distributions import (
    base_of,
    elements_of,
    log_prob,
    sample,
    support_of,
)
from infer_align.jax.programs._noise import Need, Recorder, Supply
from infer_align.jax.programs.sites import SiteEstimator, reparam, score

Array = Any
stop = jax.lax.stop_gradient

Source = Supply | Recorder
Reports = dict[str, dict[str, Any]]
"""By kind (``log_weight``, ``log_score``, ``alternatives``), then by site.

While the sites are found, ``drawn`` too: zeros of the elements' shape, for the axes in front.
"""


class Override(NamedTuple):
    """Elements of a site that do not take the value that is drawn."""

    where: Array
    """Bool, of the elements' shape."""
    values: Array
    """Of a site that is enumerated: indices into the support, for all elements."""


@dataclass
class Site:
    """What is known of a site before anything is computed."""

    uid: str
    name: str
    estimator: SiteEstimator
    default: bool
    family: str
    shape: tuple[int, ...]
    """Of the elements, without the axes in front."""
    support: int = 0
    """Number of values of an enumerated site."""


@dataclass
class Plan:
    """Sites in the order of the program, and the random numbers that each scope uses."""

    choose: Callable[[str, Any, Mapping[str, Any]], tuple[SiteEstimator, bool]]
    sites: dict[str, Site] = field(default_factory=dict)
    needs: dict[str, Need] = field(default_factory=dict)
    concrete: bool = False
    """Whether the sites are found on numbers, which sets up what has to be set up once."""
    bounds: list[str] = field(default_factory=list)
    """Objectives that promise to be bounds."""
    complete: bool = False


_FRAMES: list["Frame"] = []


def current() -> "Frame | None":
    """The innermost frame that is open."""
    return _FRAMES[-1] if _FRAMES else None


def promise_bound(name: str) -> None:
    """Say that the objective that runs is a bound, which no biased estimator may enter."""
    if (frame := current()) is not None:
        frame.plan.bounds.append(name)


class Frame(Messenger):
    """Handler of one run, or of one repetition in it; see the module.

    Parameters
    ----------
    plan : Plan
    source : Supply or Recorder
        Of random numbers.
    overrides : dict of Override
        By uid, of this frame and of those inside.
    scope : str
        Prefix of the uids.
    alternatives : bool
        Whether local estimators report theirs.
    in_scan : bool
        Whether NumPyro's scan is directly outside.
    """

    def __init__(
        self, plan: Plan, source: Source, overrides: Mapping[str, Override], *, scope: str = "",
        alternatives: bool = True, in_scan: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(None)
        self.plan, self.source, self.overrides = plan, source, overrides
        self.scope, self.alternatives, self.in_scan = scope, alternatives, in_scan
        kinds = ("log_weight", "log_score", "alternatives", "drawn")
        self.reports: Reports = {kind: {} for kind in kinds}
        self._used: dict[str, int] = {}
        self._subsamples: dict[str, Array] = {}

    def __enter__(self) -> "Frame":
        super().__enter__()
        _FRAMES.append(self)
        self._state = get_opaque_trace_state()
        return self

    def __exit__(self, *details: Any) -> Any:
        _FRAMES.pop()
        if not self.plan.complete:
            self.plan.needs[self.scope] = self.source.used
        return super().__exit__(*details)

    def unique(self, name: str) -> str:
        """The name in this scope, with a number from its second use on."""
        count = self._used.get(name, 0) + 1
        self._used[name] = count
        return self.scope + (name if count == 1 else f"{name}#{count}")

    def check_trace(self, what: str) -> None:
        """Refuse to act inside a transformation that was not opened by `vmap` or `scan`."""
        if get_opaque_trace_state() != self._state:
            raise ValueError(
                f"{what} is inside jax.vmap, jax.lax.scan, jax.lax.cond, jax.jit or another "
                "transformation of JAX, where its gradient would be lost; repeat with "
                "programs.vmap, programs.particles or numpyro.contrib.control_flow.scan, choose "
                "with jnp.where, and leave jit to the whole objective"
            )

    def overrides_of(self, scope: str) -> dict[str, Override]:
        """Those of an inner scope."""
        return {uid: o for uid, o in self.overrides.items() if uid.startswith(scope)}

    def inner(
        self, source: Source, overrides: Mapping[str, Override], scope: str, *,
        in_scan: bool = False,
    ) -> "Frame":  # fmt: skip
        """The frame of one repetition; plates keep the part of the data that was drawn outside."""
        frame = Frame(
            self.plan, source, overrides, scope=scope, alternatives=self.alternatives,
            in_scan=in_scan,
        )  # fmt: skip
        frame._subsamples.update(self._subsamples)
        return frame

    def absorb(self, reports: Reports) -> None:
        """Take the reports of an inner frame."""
        for kind, by_site in reports.items():
            self.reports[kind].update(by_site)

    def process_message(self, msg: dict[str, Any]) -> None:
        """Give every latent site its value, and keys to what asks for them."""
        kind = msg["type"]
        if kind == "sample":
            # Nobody outside sees what is repeated; a scan collects its sites and hides them.
            msg["stop"] = not self.in_scan
            if msg["value"] is None and not msg["is_observed"]:
                msg["value"] = self._draw(msg)
        elif kind in ("prng_key", "plate"):
            if kind == "plate":
                msg["stop"] = True
                if msg["value"] is None and msg["name"] in self._subsamples:
                    msg["value"] = self._subsamples[msg["name"]]
            if msg["value"] is None and msg["kwargs"].get("rng_key") is None:
                self.check_trace(f"{kind} {msg.get('name', '')!r}")
                msg["kwargs"]["rng_key"] = self.source.key()
        elif kind == "control_flow":
            msg["stop"] = True
            self._control_flow(msg)
        elif kind == "param":
            self._check_param(msg)

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        """Remember which part of the data a plate drew, for the plate of that name elsewhere."""
        if msg["type"] == "plate":
            self._subsamples[msg["name"]] = msg["value"]

    def _check_param(self, msg: dict[str, Any]) -> None:
        drawn = self.plan.concrete and self.scope and not msg["args"]
        if self.in_scan or drawn:
            raise ValueError(
                f"parameter {msg['name']!r} is declared inside a repetition, where it would be "
                "declared anew each time; declare it before, and use it inside"
            )

    def _control_flow(self, msg: dict[str, Any]) -> None:
        from infer_align.jax.programs._loops import inside_scan

        if msg["fn"].__name__ != "scan_wrapper":
            raise ValueError(
                "numpyro.contrib.control_flow.cond draws in one of its branches alone, which no "
                "estimator here covers; compute both and choose with jnp.where"
            )
        self.check_trace("scan")
        inside_scan(self, msg)

    def _draw(self, msg: dict[str, Any]) -> Array:
        name, d = msg["name"], msg["fn"]
        self.check_trace(f"site {name!r}")
        if shape := msg["kwargs"].get("sample_shape", ()):
            d = d.expand((*shape, *d.batch_shape))
        uid = self.unique(name)
        try:
            if not self.plan.complete:
                estimator, default = self.plan.choose(name, d, msg["infer"])
                site = _described(uid, name, estimator, d, default=default)
                self.plan.sites[uid] = site
                self.reports["drawn"][uid] = jnp.zeros(site.shape)
            msg["infer"] = dict(msg["infer"])
            return self._value(uid, self.plan.sites[uid], d, msg["infer"])
        except ValueError as error:
            if str(error).startswith("site "):
                raise
            raise ValueError(f"site {name!r}: {error}") from None

    def _value(self, uid: str, site: Site, d: Any, infer: dict[str, Any]) -> Array:
        estimator = site.estimator
        if estimator.kind == "pathwise":
            if estimator.draw is not None:
                return estimator.draw(d, self.source.key())
            if not d.has_rsample:
                raise ValueError(
                    f"{type(d).__name__} has no reparameterised sampler; use score, or for a "
                    "finite support enumerate_ or local_expectation"
                )
            value, log_density = sample(d, self.source)
            # A scan keeps what is in infer as it stands, without its axis of time.
            if log_density is not None and not self.in_scan:
                infer["log_density"] = log_density
            return value
        what = f"site {site.name!r} with the estimator {estimator.name}"
        fixed = lambda x: refuse_moving_support(x, d, what)
        if estimator.kind == "score":
            value = stop(sample(d, self.source)[0])
            self.reports["log_score"][uid] = fixed(log_prob(d, value))
            return value
        elements = elements_of(d)
        if estimator.kind == "enumerate":
            support = support_of(elements)
            index = jnp.zeros(elements.batch_shape, dtype=int)
            if uid in self.overrides:
                index = self.overrides[uid].values
            value = support[index]
            self.reports["log_weight"][uid] = fixed(log_prob(elements, value))
            return value
        value = stop(sample(d, self.source)[0])
        other = self.source.key() if estimator.draws else None
        if self.alternatives:
            assert estimator.alternatives is not None
            others = estimator.alternatives(elements, value, other)
            self.reports["alternatives"][uid] = others._replace(weights=fixed(others.weights))
        elif uid in self.overrides:
            where, values = self.overrides[uid]
            where = where.reshape(where.shape + (1,) * elements.event_dim)
            value = jnp.where(where, values.astype(value.dtype), value)
        return value


def _described(
    uid: str, name: str, estimator: SiteEstimator, d: Any, *, default: bool
) -> Site:  # fmt: skip
    inner = base_of(d)
    if isinstance(inner, dist.MaskedDistribution):
        raise ValueError(
            f"site {name!r} is masked: what is drawn there has no density; mask the factor instead"
        )
    site = Site(uid, name, estimator, default, type(inner).__name__, tuple(d.batch_shape))
    if estimator.kind in ("enumerate", "local"):
        elements = elements_of(d)
        site.shape = tuple(elements.batch_shape)
        if estimator.kind == "enumerate":
            site.support = int(support_of(elements).shape[0])
    return site


def default_estimator(d: Any) -> SiteEstimator:
    """Reparameterised where there is such a sampler, score function otherwise."""
    return reparam if d.has_rsample else score


def _enumerated(
    plan: Plan, lead: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:  # fmt: skip
    """By uid of the enumerated sites, the shape of all their elements."""
    return {
        uid: (*lead[uid], *site.shape)
        for uid, site in plan.sites.items()
        if site.estimator.kind == "enumerate"
    }


def joint_values(plan: Plan, lead: Mapping[str, tuple[int, ...]]) -> int:
    """How many joint values the enumerated elements have.

    Parameters
    ----------
    plan : Plan
    lead : dict
        By uid, the axes in front of the elements.
    """
    shapes = _enumerated(plan, lead)
    return math.prod(plan.sites[u].support ** math.prod(shape) for u, shape in shapes.items())


def configurations(plan: Plan, lead: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Joint indices into the supports of all enumerated elements, one row each.

    Parameters
    ----------
    plan : Plan
    lead : dict
        By uid, the axes in front of the elements.

    Raises
    ------
    ValueError
        If there are over a million.
    """
    shapes, total = _enumerated(plan, lead), joint_values(plan, lead)
    counts = {uid: math.prod(shape) for uid, shape in shapes.items()}
    if total > 1_000_000:
        sizes = ", ".join(f"{uid} {plan.sites[uid].support}^{n}" for uid, n in counts.items())
        raise ValueError(
            f"enumerated sites have {total:,} joint values ({sizes}); enumerate fewer, and use "
            "local_expectation or score for the others"
        )
    digits, rest = {}, np.arange(total)
    for uid, count in counts.items():
        columns = []
        for _ in range(count):
            rest, digit = np.divmod(rest, plan.sites[uid].support)
            columns.append(digit)
        table = np.stack(columns, axis=1) if columns else np.zeros((total, 0), dtype=int)
        digits[uid] = jnp.asarray(table.reshape((total, *shapes[uid])))
    return digits
