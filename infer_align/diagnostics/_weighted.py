"""`assess_sample`: a weighted sample of a target, and what it says of it."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from infer_align._numerics import Array
from infer_align.diagnostics._draws import errors, numpy
from infer_align.diagnostics._estimates import Moments
from infer_align.diagnostics._summary import (
    TV_LIMIT,
    Summary,
    acceptance,
    check_level,
    empty_notes,
    impossible_notes,
    infinite_notes,
    intervals,
    pool_weights,
    weight_diagnostics,
    weight_notes,
    widen_all,
)
from infer_align.diagnostics._tree import build_tree, context_labels, outcomes_by_site
from infer_align.diagnostics._units import Units, added, by_number, each_alone, unit_moments
from infer_align.targets import WeightedSample

if TYPE_CHECKING:
    import xarray

INF = math.inf


class Weighted(NamedTuple):
    """A checked `WeightedSample` in NumPy, its contexts flattened to one axis."""

    log_weights: np.ndarray
    log_target: np.ndarray
    evidence: np.ndarray | None
    units: Units
    evidence_units: Units
    same: bool
    """Whether the evidence are the weights themselves."""
    joined: bool
    """Whether the units of outcomes and evidence are the same ones."""
    total_variation: np.ndarray
    """Of an outcome's law from what the weights say, (contexts,); NaN where unknown."""

    @property
    def approximate(self) -> bool:
        """Whether the outcomes are of the target only in the limit."""
        return bool((self.total_variation != 0).any())

    @property
    def uses(self) -> tuple[str, ...]:
        """Weights that a mean under the target rests on: its own, and those it was chosen by."""
        chosen = self.approximate and self.evidence is not None and not self.same
        return ("", "_evidence") if chosen else ("",)


def assess_sample(
    sample: WeightedSample,
    *,
    log_policy: Array | None = None,
    log_prior: Array | None = None,
    features: Mapping[str, Array] | None = None,
    contexts: Sequence[str] | Sequence[int] | None = None,
    level: float = 0.95,
) -> "xarray.DataTree":
    r"""Measure what a weighted sample says of its target, with honest intervals.

    .. math:: KL(p‖π) = E_p[\log P - \log π] - \log Z, \qquad H(p) = \log Z - E_p[\log P]

    The counterpart of `assess` for the record of any sampler, with the same layout, statistics
    and rules. Dependent outcomes are summed within their clusters, whose sums are independent
    (for particle filters: Chan and Lai 2013, arXiv 1312.5114), and the ESS and Pareto k̂ of the
    cluster weights decide what is claimed: few surviving ancestors, or few chains, are few draws.
    Outcomes that were resampled, or that Markov chains ended at, look like draws of the target
    and are so only in the limit: what is said of them rests on the weights of all proposals too,
    and is claimed where ``total_variation`` · √ESS ≤ 0.05, a tenth of the standard error that a
    probability has at most.

    Parameters
    ----------
    sample : WeightedSample
        Of shape ``(n, *contexts)``. Where it has both ``cluster`` and ``evidence_cluster``, one
        number means the same cluster in both.
    log_policy : array, shape (n, *contexts), optional
        log π of the outcomes, in nats and normalised, for KL(p‖π).
    log_prior : array, shape (n, *contexts), optional
        log prior of the outcomes, for KL(p‖prior).
    features : mapping of name to array of shape (n, *contexts), optional
        Functions of the outcomes whose means under the target are wanted.
    contexts : sequence of str or int, optional
        Labels of the contexts, flattened.
    level : float
        Coverage of the intervals.

    Returns
    -------
    xarray.DataTree
        As from `assess`: ``sample_stats``, ``evidence`` (dims chain, draw, context), ``features``,
        ``outcomes``, and

        - ``diagnostics``: pooled over contexts. log_z, forward_kl = KL(p‖π), kl_target_prior =
          KL(p‖prior), entropy_target = H(p), target_<feature>, acceptance (share of finite
          evidence, of independent proposals); ess (summed), ess_min, ess_low, ess_per_draw and
          pareto_khat of the outcomes' weights, and, where they are others, ess_evidence,
          ess_low_evidence and pareto_khat_evidence of what log Z rests on; total_variation
          where the sample has one.
        - ``diagnostics/contexts``: the same for every context.

        Attributes of ``diagnostics``: n, level, notes, method, calls, ...

    Raises
    ------
    ValueError
        For NaN (how many, and where), shapes that differ, an outcome of positive weight with
        log P = −inf.

    Notes
    -----
    - Of importance samples from π the values are those of `assess`. From another proposal,
      `assess` also normalises π/q over the draws: its forward_kl is larger by log mean π/q.
    - KL(p‖π), KL(p‖prior) and H(p) carry the noise of log Ẑ along. Its covariance with that of the
      expectation is estimated where outcomes and evidence are the same draws, or both have
      clusters; elsewhere the two standard errors are added, the most that they can come to.
    - Of particle filters, the standard error of a mean is that of its resampling, and that of
      log_z, forward_kl and entropy_target an upper bound, 1.2 to 1.6 times too large when every
      step resamples.
    - Without evidence (Markov chains), log_z and what needs it are NaN and never reliable.
    - Where no evidence is accepted, log_z is ``-inf`` with the one-sided bound of `assess`, if
      the proposals are independent: log M is added where the sample has a ``log_bound``, else
      P/q ≤ 1 is assumed. Of clusters there is no bound.
    - The error of an estimated potential (``log_target_se``) is added as by `assess`.
    - A single independent unit gives estimates without standard errors.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align import WeightedSample, diagnostics
    >>> log_q, log_target = np.log([0.5, 0.3, 0.2]), np.log([1.0, 0.6, 2.4])  # Z = 4
    >>> y = np.random.default_rng(0).choice(3, size=2000, p=np.exp(log_q))
    >>> log_w = (log_target - log_q)[y]
    >>> sample = WeightedSample(y, log_w, log_target[y], evidence=log_w)
    >>> tree = diagnostics.assess_sample(sample, log_prior=log_q[y])
    >>> e = diagnostics.estimates(tree)
    >>> e["log_z"].reliable, bool(e["log_z"].low < np.log(4.0) < e["log_z"].high)
    (True, True)
    >>> bool(e["kl_target_prior"].low < 0.3819 < e["kl_target_prior"].high)
    True
    """
    check_level(level)
    shape = tuple(sample.log_weights.shape)
    w = weighted(sample)
    laws = {"forward_kl": log_policy, "kl_target_prior": log_prior}
    laws = {
        name: checked(law, name_of, shape)
        for (name, law), name_of in zip(laws.items(), ("log_policy", "log_prior"), strict=True)
        if law is not None
    }
    columns = {
        name: checked(values, f"feature {name!r}", shape, infinite=(-INF, INF))
        for name, values in (features or {}).items()
    }
    se = None if sample.log_target_se is None else errors(sample.log_target_se, shape)
    bound = None if sample.log_bound is None else _per_context(sample.log_bound, shape[1:])
    summary = _summarise(w, laws, columns, level, se, bound)
    stats = {"log_weight": w.log_weights, "log_target": w.log_target}
    stats |= {
        {"forward_kl": "log_policy", "kl_target_prior": "log_prior"}[name]: law
        for name, law in laws.items()
    }
    evidence = {} if w.evidence is None else {"log_evidence": w.evidence}
    for group, cluster in ((stats, sample.cluster), (evidence, sample.evidence_cluster)):
        if cluster is not None:
            group["cluster"] = np.asarray(cluster).reshape(len(cluster), -1)
    groups = {
        "sample_stats": stats,
        "evidence": evidence,
        "features": columns,
        "outcomes": outcomes_by_site(sample.outcomes, shape),
    }
    attributes = {
        "level": level,
        "n": shape[0],
        "on_policy": 0,
        "method": sample.method,
        "calls": sample.calls,
    }
    labels = context_labels(None, contexts, w.log_weights.shape[1])
    return build_tree(groups, summary, labels, attributes)


def weighted(sample: WeightedSample) -> Weighted:
    """Check a sample; every error says how many entries of which array are at fault."""
    shape = tuple(sample.log_weights.shape)
    if not shape or 0 in shape:
        raise ValueError(
            f"log_weights has shape {shape}; a sample has outcomes on axis 0 and at least one "
            "of them"
        )
    log_weights = checked(sample.log_weights, "log_weights", shape)
    log_target = checked(sample.log_target, "log_target", shape)
    if count := int(((log_weights > -INF) & (log_target == -INF)).sum()):
        raise ValueError(
            f"{count} of {log_weights.size} outcomes have a positive weight and log_target -inf; "
            "an outcome that the target rejects has log-weight -inf"
        )
    evidence = None
    if sample.evidence is not None:
        rows = tuple(sample.evidence.shape)[:1]
        if not rows or rows[0] == 0:
            raise ValueError(
                f"evidence has shape {tuple(sample.evidence.shape)}; it needs at least one row. "
                "Leave it None where the method says nothing of Z"
            )
        evidence = checked(sample.evidence, "evidence", rows + shape[1:])
    cluster = _numbers(sample.cluster, "cluster", shape)
    evidence_shape = None if evidence is None else (len(evidence), *shape[1:])
    evidence_cluster = _numbers(sample.evidence_cluster, "evidence_cluster", evidence_shape)
    same = cluster is None and evidence_cluster is None and _same(log_weights, evidence)
    joined = same or (cluster is not None and evidence_cluster is not None)
    units = each_alone(log_weights.shape) if cluster is None else by_number(cluster)[0]
    other = units
    if not same and evidence is not None and evidence_cluster is None:
        other = each_alone(evidence.shape)
    elif cluster is None and evidence_cluster is not None:
        other = by_number(evidence_cluster)[0]
    elif cluster is not None and evidence_cluster is not None:
        units, other = by_number(cluster, evidence_cluster)
    distance = _per_context(sample.total_variation, shape[1:])
    return Weighted(log_weights, log_target, evidence, units, other, same, joined, distance)


def weights_of(w: Weighted) -> dict[str, np.ndarray]:
    """ESS, its lower bound and k̂ of what the estimates rest on, and how far it is off."""
    kinds = {"": w.units.log_total(w.log_weights)}
    if w.evidence is not None and not w.same:
        kinds["_evidence"] = w.evidence_units.log_total(w.evidence)
    weights = weight_diagnostics(kinds, khat=True)
    return weights | ({"total_variation": w.total_variation} if w.approximate else {})


def expectation(
    w: Weighted, values: np.ndarray, bounds: tuple[float, float] = (-INF, INF)
) -> Moments:
    """E_p of values (n, contexts): NaN of no outcome, ±inf where the values are."""
    p = _shares(w.log_weights)
    values = np.where(p > 0, values, 0.0)
    mean = (p * values).sum(axis=0)
    finite = np.isfinite(mean)
    centred = np.where(finite, values, 0.0) - np.where(finite, mean, 0.0)
    units = w.units
    influence = units.count * units.total(np.where(finite, p * centred, 0.0))
    empty = ~(p > 0).any(axis=0)
    proven = np.isinf(mean)
    value = np.where(empty, np.nan, mean)
    m = unit_moments(value, influence, units.count, 0.0, bounds, w.uses, empty, proven)
    return m._replace(se=np.where(proven, 0.0, m.se))


def log_z(w: Weighted) -> Moments:
    """Log Ẑ, NaN without evidence, ``-inf`` where none is accepted."""
    contexts = w.log_weights.shape[1]
    if w.evidence is None:
        unknown, nothing = np.ones(contexts, dtype=bool), np.zeros((1, contexts))
        value, few = np.full(contexts, math.nan), np.ones(contexts)
        return unit_moments(value, nothing, few, 0.0, (-INF, INF), ("",), unknown)
    top = w.evidence.max(axis=0)
    top = np.where(top > -INF, top, 0.0)
    with np.errstate(divide="ignore"):
        value = np.log(np.exp(w.evidence - top).mean(axis=0)) + top
    units, uses = w.evidence_units, ("",) if w.same else ("_evidence",)
    influence = units.count * units.total(_shares(w.evidence)) - 1
    empty = value == -INF
    return unit_moments(value, influence, units.count, -1.0, (-INF, INF), uses, empty)


def with_log_z(
    w: Weighted, values: np.ndarray, sign: float, bounds: tuple[float, float]
) -> Moments:
    """E_p[values] + sign · log Z: their common draws make the error, or both errors added."""
    mean, z = expectation(w, values, bounds), log_z(w)
    with np.errstate(invalid="ignore"):
        value = mean.value + sign * z.value
    uses = ("",) if w.same or w.evidence is None else ("", "_evidence")
    if not w.joined or w.evidence is None:
        return added(value, mean, z, sign)._replace(uses=uses, bounds=bounds)
    unknown = (np.isinf(mean.se) | np.isinf(z.se)) & ~mean.proven
    influence = mean.influence + sign * z.influence
    count = w.units.count
    m = unit_moments(value, influence, count, -sign, bounds, uses, unknown, mean.proven)
    return m._replace(se=np.where(mean.proven, 0.0, m.se))


def _summarise(
    w: Weighted,
    laws: dict[str, np.ndarray],
    features: dict[str, np.ndarray],
    level: float,
    log_target_se: np.ndarray | None,
    log_bound: np.ndarray | None,
) -> Summary:
    weights = weights_of(w)
    log_p = np.where(w.log_weights > -INF, w.log_target, 0.0)
    values = {name: log_p - law for name, law in laws.items()} | {"entropy_target": -log_p}
    estimates = {"log_z": log_z(w)}
    for name in laws:
        estimates[name] = with_log_z(w, values[name], -1.0, (0.0, INF))
    estimates["entropy_target"] = with_log_z(w, -log_p, 1.0, (-INF, INF))
    for name, feature in features.items():
        values[f"target_{name}"] = feature
        estimates[f"target_{name}"] = expectation(w, feature)
    independent = w.evidence is not None and w.evidence_units.index is None
    proposals = len(w.evidence) if independent and w.evidence is not None else None
    most = 0.0 if log_bound is None else log_bound
    by_context, pooled = intervals(estimates, weights, level, proposals, most)
    if independent and w.evidence is not None:
        shares = acceptance(np.isfinite(w.evidence), level)
        by_context["acceptance"], pooled["acceptance"] = shares
    n = len(w.log_weights)
    pooled_weights = pool_weights(weights) | {"ess_per_draw": float(weights["ess"].mean() / n)}
    notes = _notes(w, weights, level, bounded=log_bound is not None) + infinite_notes(pooled)
    notes += impossible_notes(estimates, pooled)
    if log_target_se is not None and log_target_se.any():
        moved = _potential_errors(w, values, log_target_se)
        notes.append(widen_all(by_context, pooled, moved, estimates, level))
    weights["ess_per_draw"] = weights["ess"] / n
    return Summary(by_context, pooled, weights, pooled_weights, tuple(notes))


def _potential_errors(
    w: Weighted, values: dict[str, np.ndarray], log_target_se: np.ndarray
) -> dict[str, np.ndarray]:
    """Largest standard deviation that the potential's error gives each estimate, (contexts,).

    With δ the error of log P, log Z moves by E_p[δ], and a mean, a KL and the entropy by the
    covariance of δ and what is averaged: in these two log Ẑ takes back what E_p[log P] adds.
    """
    p = _shares(w.log_weights)
    out = {"log_z": (p * log_target_se).sum(axis=0)}
    for name, x in values.items():
        h = np.where((p > 0) & np.isfinite(x), x, 0.0)
        out[name] = (p * np.abs(h - (p * h).sum(axis=0)) * log_target_se).sum(axis=0)
    return out


def _notes(
    w: Weighted, weights: dict[str, np.ndarray], level: float, *, bounded: bool
) -> list[str]:
    notes, n = [], len(w.log_weights)
    some = np.isfinite(w.log_weights).any(axis=0)
    if w.evidence is None:
        notes.append(
            "the sample has no evidence of Z: log_z, and the divergences and entropy that need "
            "it, are undefined. Take a sampler that estimates Z, or bound it with log_z_bounds."
        )
        if not some.all():
            notes.append("no outcome has a positive weight: means under the target are undefined.")
    elif w.evidence_units.index is None:
        empty = ~np.isfinite(w.evidence).any(axis=0)
        notes += empty_notes(empty, len(w.evidence), level, bounded=bounded)
    elif not np.isfinite(w.evidence).any(axis=0).all():
        notes.append(
            "no accepted evidence: log_z is -inf, and dependent proposals give no bound for it. "
            "Draw more particles, or guide them better towards the target."
        )
    if (single := w.units.count < 2).any():
        notes.append(
            f"a single independent outcome or cluster in {single.sum()} of {len(single)} contexts: "
            "no standard error can be given; draw more."
        )
    if w.units.index is not None:
        notes.append(
            "the outcomes are dependent within clusters: ESS and Pareto k-hat are those of the "
            f"weights summed in each, of {int(w.units.count.min())} independent clusters."
        )
    if w.evidence is not None and not w.joined:
        notes.append(
            "outcomes and evidence are not matched: the standard errors of log_z and of the mean "
            "under the target are added in what needs both, an upper bound."
        )
    notes += _distance_notes(w, weights)
    label = "P/q" if w.same else "of the outcomes"
    notes += weight_notes(weights, "", label, "target", some, n)
    if w.evidence is not None and not w.same:
        accepted = np.isfinite(w.evidence).any(axis=0)
        rows = len(w.evidence)
        notes += weight_notes(weights, "_evidence", "of Z", "target", accepted, rows)
    return notes


def _distance_notes(w: Weighted, weights: dict[str, np.ndarray]) -> list[str]:
    """Outcomes that are of the target only in the limit."""
    far = ~(w.total_variation * np.sqrt(weights["ess"]) <= TV_LIMIT)
    if not far.any():
        return []
    unknown = np.isnan(w.total_variation)
    which = f"{far.sum()} of {len(far)} contexts"
    if unknown.any():
        return [
            f"in {which} it is not known how close the law of the outcomes is to the target: no "
            "mean under it is claimed. See that the means stop moving as the method is given more "
            "work, or take one whose weights correct the rest: importance, smc."
        ]
    return [
        f"in {which} the law of the outcomes may be {w.total_variation.max():.2g} from the "
        f"target's in total variation, and {TV_LIMIT}/√ESS = "
        f"{TV_LIMIT / math.sqrt(weights['ess'].max()):.2g} is little enough: give the method more "
        "steps, or more proposals."
    ]


def _shares(log_weights: np.ndarray) -> np.ndarray:
    """Self-normalised weights, 0 where all are 0."""
    top = log_weights.max(axis=0)
    w = np.exp(log_weights - np.where(top > -INF, top, 0.0))
    total = w.sum(axis=0)
    return w / np.where(total > 0, total, 1.0)


def _same(log_weights: np.ndarray, evidence: np.ndarray | None) -> bool:
    """Whether both are the same weights, up to a constant per context."""
    if evidence is None or evidence.shape != log_weights.shape:
        return False
    finite = log_weights > -INF
    if not np.array_equal(finite, evidence > -INF):
        return False
    gap = np.where(finite, evidence, 0.0) - np.where(finite, log_weights, 0.0)
    low, high = np.where(finite, gap, INF).min(axis=0), np.where(finite, gap, -INF).max(axis=0)
    return bool((high - low <= 1e-9 * (1 + np.abs(high)))[finite.any(axis=0)].all())


def checked(
    array: Array, name: str, shape: tuple[int, ...], infinite: tuple[float, ...] = (INF,)
) -> np.ndarray:
    """In NumPy float64, (rows, contexts), or an error that counts what is wrong."""
    if tuple(array.shape) != shape:
        raise ValueError(
            f"{name} has shape {tuple(array.shape)}; needed is {shape}, outcomes on axis 0 and the "
            "contexts of log_weights behind"
        )
    values = numpy(array).reshape(shape[0], -1)
    bad = np.isnan(values) | np.isin(values, infinite)
    if count := int(bad.sum()):
        nan = int(np.isnan(values).sum())
        raise ValueError(
            f"{name} has {nan} NaN and {count - nan} infinite entries among {values.size}; "
            "features must be finite, log-densities and log-weights finite or -inf"
        )
    return values


def _per_context(value: float | np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(np.asarray(value, dtype=np.float64), shape).reshape(-1)


def _numbers(
    cluster: np.ndarray | None, name: str, shape: tuple[int, ...] | None
) -> np.ndarray | None:
    if cluster is None:
        return None
    numbers = np.asarray(cluster)
    if numbers.shape != shape or numbers.dtype.kind not in "iu":
        raise ValueError(
            f"{name} has shape {numbers.shape} and type {numbers.dtype}; needed are integers of "
            f"shape {shape}, one number a cluster"
        )
    return numbers.reshape(len(numbers), -1)
