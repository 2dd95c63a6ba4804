"""Estimates from a weighted sample, whose outcomes may be dependent or approximate."""

import math
from typing import NamedTuple

import numpy as np

from infer_align._arguments import array as checked_array
from infer_align._arguments import instance
from infer_align._numerics import Array, logmeanexp, mean_under, ties
from infer_align._reliability import worth
from infer_align.diagnostics._draws import numpy, per_context
from infer_align.diagnostics._estimates import Moments
from infer_align.diagnostics._summary import Grounds
from infer_align.diagnostics._units import Units, added, by_number, each_alone, unit_moments
from infer_align.targets import WeightedSample

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


def weighted(sample: WeightedSample) -> Weighted:
    """Check a sample; every error says how many entries of which array are at fault."""
    instance("the sample", sample, WeightedSample, "samplers.importance(source, n)")
    shape = tuple(checked_array("log_weights", sample.log_weights).shape)
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
    distance = per_context(sample.total_variation, shape[1:])
    return Weighted(log_weights, log_target, evidence, units, other, same, joined, distance)


def grounds_of(w: Weighted, uses: tuple[str, ...] = ("", "_evidence")) -> Grounds:
    """What the weights that the estimates rest on are worth, and how far the outcomes are off."""
    kinds = {"": w.units.log_total(w.log_weights)}
    if "_evidence" in uses and w.evidence is not None and not w.same:
        kinds["_evidence"] = w.evidence_units.log_total(w.evidence)
    worths = {suffix: worth(x) for suffix, x in kinds.items()}
    return Grounds(worths, w.total_variation if w.approximate else None)


def expectation(
    w: Weighted, values: np.ndarray, bounds: tuple[float, float] = (-INF, INF)
) -> Moments:
    """E_p of values (n, contexts): NaN of no outcome, ±inf where the values are."""
    p = _shares(w.log_weights)
    values = np.where(p > 0, values, 0.0)
    mean = mean_under(p, values)
    finite = np.isfinite(mean)
    centred = np.where(finite, values, 0.0) - np.where(finite, mean, 0.0)
    units = w.units
    influence = units.count * units.total(np.where(finite, p * centred, 0.0))
    empty = ~(p > 0).any(axis=0)
    proven = np.isinf(mean)
    value = np.where(empty, np.nan, mean)
    m = unit_moments(value, influence, units.count, 0.0, bounds, w.uses, empty, proven)
    share = units.count * units.total(p) - 1
    bias = -(influence * share).sum(axis=0) / units.count**2
    return m._replace(se=np.where(proven, 0.0, m.se), bias=bias)


def log_z(w: Weighted) -> Moments:
    """Log Ẑ, NaN without evidence, ``-inf`` where none is accepted."""
    contexts = w.log_weights.shape[1]
    if w.evidence is None:
        unknown, nothing = np.ones(contexts, dtype=bool), np.zeros((1, contexts))
        value, few = np.full(contexts, math.nan), np.ones(contexts)
        return unit_moments(value, nothing, few, 0.0, (-INF, INF), ("",), unknown)
    value = logmeanexp(w.evidence)
    units, uses = w.evidence_units, ("",) if w.same else ("_evidence",)
    influence = units.count * units.total(_shares(w.evidence)) - 1
    empty = value == -INF
    m = unit_moments(value, influence, units.count, -1.0, (-INF, INF), uses, empty)
    squares = (influence**2).sum(axis=0) + units.count - len(influence)  # -1 of those without a row
    return m._replace(bias=-squares / 2 / units.count**2)


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
    # Covariances of shares and influences: where both rows are the same units', they are these.
    bias = np.where(unknown, 0.0, mean.bias + sign * np.asarray(z.bias))
    return m._replace(se=np.where(mean.proven, 0.0, m.se), bias=bias)


def moved_by_potential(
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
        out[name] = (p * np.abs(h - mean_under(p, h)) * log_target_se).sum(axis=0)
    return out


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
    e, w = (np.where(finite, x, 0.0) for x in (evidence, log_weights))
    largest = np.argmax(np.where(finite, w, -INF), axis=0)[None]
    constant = np.take_along_axis(e - w, largest, axis=0)
    rounding = 10 * (ties(e) + ties(w) + ties(constant))
    return bool((~finite | (np.abs(e - w - constant) <= rounding)).all())


def checked(
    array: Array, name: str, shape: tuple[int, ...], infinite: tuple[float, ...] = (INF,)
) -> np.ndarray:
    """In NumPy float64, (rows, contexts), or an error that counts what is wrong."""
    if tuple(checked_array(name, array).shape) != shape:
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
