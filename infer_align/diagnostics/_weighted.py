"""`assess_sample`: a weighted sample of a target, and what it says of it."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from infer_align._arguments import mapping
from infer_align._numerics import Array
from infer_align._reliability import TV_LIMIT, too_far
from infer_align.diagnostics._draws import errors, per_context
from infer_align.diagnostics._estimates import Moments
from infer_align.diagnostics._summary import (
    Grounds,
    Summary,
    acceptance,
    check_level,
    empty_notes,
    impossible_notes,
    infinite_notes,
    intervals,
    unseen_notes,
    weight_notes,
    widen_all,
)
from infer_align.diagnostics._tree import build_tree, context_labels, outcomes_by_site
from infer_align.diagnostics._unseen import Reach, Unseen, check_bound, grow, moved_mean, reached
from infer_align.diagnostics._weighted_estimates import (
    Weighted,
    checked,
    expectation,
    grounds_of,
    log_z,
    moved_by_potential,
    weighted,
    with_log_z,
)
from infer_align.targets import WeightedSample

if TYPE_CHECKING:
    import xarray

INF = math.inf


def assess_sample(
    sample: WeightedSample,
    *,
    log_policy: Array | None = None,
    log_prior: Array | None = None,
    features: Mapping[str, Array] | None = None,
    contexts: Sequence[str] | Sequence[int] | None = None,
    level: float = 0.95,
    log_bound: float | Array | None = None,
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
    log_bound : float or array of shape (*contexts), optional
        log M where P/q ≤ M is known of every outcome, for independent proposals. Default: the
        sample's own. Used as by `assess`.

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
    w = weighted(sample)
    shape = tuple(sample.log_weights.shape)
    laws = {"forward_kl": log_policy, "kl_target_prior": log_prior}
    laws = {
        name: checked(law, name_of, shape)
        for (name, law), name_of in zip(laws.items(), ("log_policy", "log_prior"), strict=True)
        if law is not None
    }
    columns = {
        name: checked(values, f"feature {name!r}", shape, infinite=(-INF, INF))
        for name, values in mapping(
            "features", features, entries="arrays of shape (n, *contexts)"
        ).items()
    }
    se = None if sample.log_target_se is None else errors(sample.log_target_se, shape)
    log_bound = sample.log_bound if log_bound is None else log_bound
    bound = None if log_bound is None else per_context(log_bound, shape[1:])
    if bound is not None and (w.evidence is None or w.evidence_units.index is not None):
        raise ValueError(
            "log_bound bounds P/q of independent proposals, and this sample's evidence is missing "
            "or dependent: leave it out, or take importance, rejection or independence Metropolis"
        )
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


def _summarise(
    w: Weighted,
    laws: dict[str, np.ndarray],
    features: dict[str, np.ndarray],
    level: float,
    log_target_se: np.ndarray | None,
    log_bound: np.ndarray | None,
) -> Summary:
    grounds = grounds_of(w)
    log_p = np.where(w.log_weights > -INF, w.log_target, 0.0)
    values = {name: log_p - law for name, law in laws.items()} | {"entropy_target": -log_p}
    estimates = {"log_z": log_z(w)}
    for name in laws:
        estimates[name] = with_log_z(w, values[name], -1.0, (0.0, INF))
    estimates["entropy_target"] = with_log_z(w, values["entropy_target"], 1.0, (-INF, INF))
    for name, feature in features.items():
        values[f"target_{name}"] = feature
        estimates[f"target_{name}"] = expectation(w, feature)
    independent = w.evidence is not None and w.evidence_units.index is None
    proposals = len(w.evidence) if independent and w.evidence is not None else None
    most = 0.0 if log_bound is None else log_bound
    unseen = None if log_bound is None else _unseen(w, values, estimates, log_bound, level)
    by_context, pooled = intervals(estimates, grounds, level, proposals, most, unseen)
    if independent and w.evidence is not None:
        shares = acceptance(np.isfinite(w.evidence), level)
        by_context["acceptance"], pooled["acceptance"] = shares
    n = len(w.log_weights)
    weights, pooled_weights = grounds.columns(n)
    notes = _notes(w, grounds, level, bounded=log_bound is not None) + infinite_notes(pooled)
    notes += impossible_notes(estimates, pooled)
    if w.evidence is not None:
        notes += unseen_notes(unseen, by_context["log_z"], estimates["log_z"], len(w.evidence))
    if log_target_se is not None and log_target_se.any():
        moved = moved_by_potential(w, values, log_target_se)
        notes.append(widen_all(by_context, pooled, moved, estimates, level))
    return Summary(by_context, pooled, weights, pooled_weights, tuple(notes), grounds)


def _unseen(
    w: Weighted,
    values: dict[str, np.ndarray],
    estimates: dict[str, Moments],
    log_bound: np.ndarray,
    level: float,
) -> Unseen:
    """What a region that no proposal met may add. Exact draws say what they say of the target."""
    evidence = w.evidence
    assert evidence is not None
    check_bound(evidence, log_bound)
    signs = {"forward_kl": -1.0, "kl_target_prior": -1.0, "entropy_target": 1.0}
    top = w.log_weights.max(axis=0)
    top = np.where(top > -INF, top, 0.0)  # of a context without an accepted draw
    spread = np.ptp(np.where(w.log_weights > -INF, w.log_weights, top), axis=0)
    exact = (spread <= 1e-9) & (w.total_variation == 0) & (not w.same)

    def at(share: float) -> dict[str, Reach]:
        log_z, extra, grown = grow(evidence, log_bound, share)
        high = np.minimum(log_z + grown, log_bound)
        out = {"log_z": Reach(high, high)}
        for name, x in values.items():
            # Of a law the bound itself may be what is missed: log P - log q where it is q.
            wide = x if name not in ("forward_kl", "kl_target_prior") else np.maximum(x, log_bound)
            seen = moved_mean(x, w.log_weights, extra)
            most = moved_mean(np.where(x == x.max(axis=0), wide, x), w.log_weights, extra)
            mean = moved_mean(x, w.log_weights, np.full_like(extra, -INF))
            ends = [np.where(exact, mean.low, end) for end in (seen.low, most.high)]
            sign = signs.get(name, 0.0)
            out[name] = Reach(*(end + sign * high if sign else end for end in ends))
        return out

    return reached(at, estimates, len(evidence), log_bound, level)


def _notes(w: Weighted, grounds: Grounds, level: float, *, bounded: bool) -> list[str]:
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
    notes += _distance_notes(w, grounds.weights[""].ess)
    label = "P/q" if w.same else "of the outcomes"
    notes += weight_notes(grounds.weights[""], label, "target", some, n)
    if w.evidence is not None and not w.same:
        accepted = np.isfinite(w.evidence).any(axis=0)
        rows = len(w.evidence)
        notes += weight_notes(grounds.weights["_evidence"], "of Z", "target", accepted, rows)
    return notes


def _distance_notes(w: Weighted, ess: np.ndarray) -> list[str]:
    """Outcomes that are of the target only in the limit."""
    far = too_far(w.total_variation, ess)
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
        f"{TV_LIMIT / math.sqrt(ess.max()):.2g} is little enough: give the method more "
        "steps, or more proposals."
    ]
