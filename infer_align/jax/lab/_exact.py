"""The exact gradient of an objective: by listing all values, by quadrature, or unknown."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from numpyro.primitives import Messenger

from infer_align.jax.programs import SiteEstimator, enumerate_, expectation, score

MAX_RUNS = 50_000
"""Joint values and nodes, of which the objective runs once each."""
NODES = 64
"""Largest number of nodes of one normal variable."""
CHUNK = 256
"""Nodes at once."""
OTHER = "the objective draws what is no sample site (a subsample, or a key)"
stop = jax.lax.stop_gradient


class Exact(NamedTuple):
    """A gradient (P,), how far it may be off, and where it comes from; None if unknown."""

    gradient: np.ndarray | None
    error: Any
    source: str


def exact_gradient(
    objective: Callable[..., Any], free: Any, bind: Callable[[Any], tuple[Any, ...]]
) -> Exact:
    """By enumeration if all sites are finite, by quadrature if the others are normal.

    Parameters
    ----------
    objective : callable
    free : pytree
        What is differentiated.
    bind : callable
        From it to all arguments of the objective.
    """
    args = bind(free)
    sites = {site.name: site for site in expectation(objective).sites(*args)}
    finite = dict.fromkeys(sites, enumerate_)
    if not _can_list(objective, finite, args):
        one = lambda name: dict.fromkeys(sites, score) | {name: enumerate_}
        finite = {name: enumerate_ for name in sites if _can_list(objective, one(name), args)}
    others = [site for name, site in sites.items() if name not in finite]
    for site in others:
        if site.family != "Normal":
            return _unknown(f"site {site.name!r} ({site.family}) is neither finite nor normal")
    if any("/" in s.uid for s in expectation(objective).sites(*args) if s.name not in finite):
        return _unknown("a normal site is repeated by vmap, particles or scan")
    normals = _count_normals(objective, args, finite) if others else 0
    probe = expectation(_at_nodes(objective, jnp.zeros(normals)), finite)
    values = probe.joint_values(*args)
    if values * 12**normals > MAX_RUNS:
        many = f"{values:,}" if values < 10**12 else f"about 10^{values.bit_length() * 0.30103:.0f}"
        what = f"{many} joint values" + f" and {normals} normal variables" * bool(normals)
        return _unknown(f"{what} would take over {MAX_RUNS:,} runs of the objective")
    if not normals:
        many = f"{values:,} joint values" if values > 1 else "a single run, as no site is drawn"
        return _enumerated(objective, finite, free, bind, f"by enumeration: {many}")
    per_site = min(NODES, int((MAX_RUNS / values) ** (1 / normals) + 1e-9))
    return _quadrature(objective, finite, free, bind, (per_site, normals, values))


def _unknown(why: str) -> Exact:
    return Exact(None, 0.0, f"unknown: {why}; pass exact= if you know it")


def _can_list(objective: Any, choice: dict[str, SiteEstimator], args: tuple[Any, ...]) -> bool:
    """Whether the supports can be listed: asked of the estimator that lists them."""
    try:
        expectation(objective, choice).sites(*args)
    except ValueError as error:
        if "cannot be listed" in str(error):
            return False
        raise
    return True


def _enumerated(
    objective: Any, finite: Any, free: Any, bind: Callable[[Any], tuple[Any, ...]], source: str
) -> Exact:
    """Two keys tell whether anything is drawn that is not a site (subsamples, say)."""
    loss = expectation(objective, finite)
    gradient = jax.jit(jax.grad(lambda free, key: loss(key, *bind(free))))
    one, other = (_flat(gradient(free, jax.random.key(seed))) for seed in (0, 1))
    if not _same(one, other):
        return _unknown(OTHER)
    return Exact(one, 0.0, source)


class _Nodes(Messenger):
    """Puts normal sites at loc + scale·ε, without gradient, and keeps their log-density.

    With the values fixed, E[f] has the gradient Σ w (∇f + f ∇log q), for any f, also one that
    jumps; the pathwise form would miss the jumps without a sign of it.
    """

    def __init__(self, fn: Any, nodes: Any) -> None:
        super().__init__(fn)
        self.nodes, self.used, self.log_q = nodes, 0, jnp.zeros(())

    def process_message(self, msg: dict[str, Any]) -> None:
        """Give a normal site its value."""
        if msg["type"] != "sample" or msg["value"] is not None or msg["is_observed"]:
            return
        d: Any = msg["fn"]
        if shape := msg["kwargs"].get("sample_shape", ()):
            d = d.expand((*shape, *d.batch_shape))
        base: Any = d
        while isinstance(base, dist.Independent | dist.ExpandedDistribution):
            base = base.base_dist
        if type(base) is not dist.Normal:
            return
        whole = (*d.batch_shape, *d.event_shape)
        start, self.used = self.used, self.used + math.prod(whole)
        # While they are counted there are none: any values of the right shape will do.
        taken = self.nodes[start : self.used] if len(self.nodes) else jnp.zeros(math.prod(whole))
        loc, scale = jnp.asarray(base.loc), jnp.asarray(base.scale)
        value = stop(loc + scale * taken.reshape(whole))
        self.log_q = self.log_q + jnp.sum(d.log_prob(value))
        msg["value"] = value


def _at_nodes(objective: Callable[..., Any], nodes: Any) -> Callable[..., Any]:
    """The objective with its normal sites at these nodes."""

    def run(*args: Any) -> Any:
        handler = _Nodes(None, nodes)
        with handler:
            value = objective(*args)
        return jnp.exp(handler.log_q - stop(handler.log_q)) * value

    return run if len(nodes) else objective


def _count_normals(objective: Any, args: tuple[Any, ...], finite: Any) -> int:
    used = []

    def run(*args: Any) -> Any:
        handler = _Nodes(None, jnp.zeros(0))
        with handler:
            value = objective(*args)
        used.append(handler.used)
        return value

    expectation(run, finite).sites(*args)
    return used[0]


def _quadrature(
    objective: Any, finite: Any, free: Any, bind: Callable[[Any], tuple[Any, ...]],
    size: tuple[int, int, int],
) -> Exact:  # fmt: skip
    """Gauss–Hermite in all normal variables; a rule with fewer nodes says how good it is."""
    most, normals, values = size

    @jax.jit
    def some(nodes: Any, weights: Any, free: Any, key: Any) -> Any:
        def one(node: Any) -> Any:
            loss = expectation(_at_nodes(objective, node), finite)
            return ravel_pytree(jax.grad(lambda free: loss(key, *bind(free)))(free))[0]

        return weights @ jax.vmap(one)(nodes)

    def rule(per_site: int, seed: int = 0) -> np.ndarray:
        x, w = np.polynomial.hermite_e.hermegauss(per_site)
        grid = np.stack(np.meshgrid(*[x] * normals, indexing="ij"), axis=-1).reshape(-1, normals)
        mass = np.ones(1)
        for _ in range(normals):
            mass = np.multiply.outer(mass, w / w.sum()).reshape(-1)
        kept = mass > 1e-30  # beyond, f may overflow, and 0 · inf is NaN
        grid, mass = grid[kept], mass[kept]
        spare = -len(mass) % CHUNK  # of no mass
        grid, mass = np.pad(grid, ((0, spare), (0, 0))), np.pad(mass, (0, spare))
        total, key = 0.0, jax.random.key(seed)
        for at in range(0, len(mass), CHUNK):
            here = slice(at, at + CHUNK)
            part = some(jnp.asarray(grid[here]), jnp.asarray(mass[here]), free, key)
            total = total + np.asarray(part, dtype=np.float64)
        return np.asarray(total)

    coarse, nodes = rule(8), 8
    if not _same(coarse, rule(8, seed=1)):
        return _unknown(OTHER)
    while True:
        nodes = min(nodes * 3 // 2, most)
        fine = rule(nodes)
        if not np.isfinite(fine).all():
            return _unknown("the gradient at some quadrature nodes is not finite")
        error = np.abs(fine - coarse)
        if nodes == most or error.max() <= 1e-9 * np.abs(fine).max():
            break
        coarse = fine
    joint = f" and {values:,} joint values" if values > 1 else ""
    source = (
        f"by Gauss-Hermite quadrature: {nodes} nodes for each of {normals} normal "
        f"variable{'s' * (normals > 1)}{joint}, off by about {error.max():.1g}"
    )
    return Exact(fine, error, source)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two keys gave the same; if not, something is drawn that is no sample site."""
    return bool(np.allclose(one, other, rtol=1e-4, atol=1e-6 * np.abs(one).max(), equal_nan=True))


def _flat(tree: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0], dtype=np.float64)
