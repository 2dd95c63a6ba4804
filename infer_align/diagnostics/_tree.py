"""`assess`: the draws and what they say, as an ArviZ-style `xarray.DataTree`."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import is_torch_array

from infer_align._arguments import entries, scalar
from infer_align._numerics import Array
from infer_align.diagnostics._draws import draws, errors, numpy, per_context
from infer_align.diagnostics._summary import STATISTICS, Estimate, Summary, summarise, withdraw
from infer_align.divergences import (
    FDivergence,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    total_variation,
)
from infer_align.estimators import LogWeights

if TYPE_CHECKING:
    import xarray

DIVERGENCES = (reverse_kl, forward_kl, total_variation, jensen_shannon)


def assess(
    weights: LogWeights,
    *,
    log_prior: Array | None = None,
    log_target_se: Array | None = None,
    features: Mapping[str, Array] | None = None,
    contexts: Sequence[str] | Sequence[int] | None = None,
    outcomes: Array | Mapping[str, Array] | None = None,
    divergences: Sequence[FDivergence] = DIVERGENCES,
    level: float = 0.95,
    max_sample_score_difference: float | None = None,
    log_bound: float | Array | None = None,
    withdrawn: Sequence[str] = (),
) -> "xarray.DataTree":
    r"""Measure how close a policy is to a target, from draws, with honest intervals.

    .. math:: \log \hat Z = \log \frac1n \sum_i P(y_i)/q(y_i), \qquad
              KL(π‖p) = E_π[\log π - \log P] + \log Z, \quad ...

    Delta-method intervals from influence functions (Owen 2013, *Monte Carlo theory, methods and
    examples*, §9.2), in which all estimates share the noise of log Ẑ. An interval is claimed
    (``reliable``) where Pareto k̂ < 0.5 and the expected ESS is at least 200 with 95% confidence;
    elsewhere the notes say what to do.

    Parameters
    ----------
    weights : LogWeights
        Log-probabilities of n draws y ~ q, shape ``(n, *contexts)``, in nats; any array library.
        Without a proposal, q = π. ``-inf`` targets are rejected draws.
    log_prior : array, shape (n, *contexts), optional
        log prior(y), for KL(π‖prior).
    log_target_se : array, shape (n, *contexts), optional
        Standard errors of log P(y), where the target's potential is itself an estimate
        (``Target.log_potential_se``). The errors of all draws come from one estimate and are taken
        as fully correlated: an estimate that moves by s_i δ_i with each log P gets (E|s| se)² more
        variance, the most that such errors can give it.
    features : mapping of name to array of shape (n, *contexts), optional
        Functions of the outcomes whose means under policy and target are wanted.
    contexts : sequence of str or int, optional
        Labels of the contexts, flattened. Default ``weights.context``, or 0, 1, ...
    outcomes : array of shape (n, *contexts, ...), or mapping of site to array, optional
        The draws themselves, to keep.
    divergences : sequence of FDivergence
        The divergences D_f(π‖p) to estimate.
    level : float
        Coverage of the intervals.
    max_sample_score_difference : float, optional
        Largest |log π when sampling − log π when scoring| met, to be recorded.
    log_bound : float or array of shape (*contexts), optional
        log M where P/q ≤ M is known of every outcome, not of the draws alone: the largest reward
        over beta where q is the prior (``Target.log_bound``). Every interval then reaches what the
        estimates would be with a region of probability 3/n at that bound, log(Ẑ + 3M/n), and is
        claimed only where that moves an end by less than half the interval's length.
    withdrawn : sequence of str
        Reasons why no interval can be claimed whatever the weights say: they become notes, and
        every estimate is unreliable.

    Returns
    -------
    xarray.DataTree
        ``sample_stats`` (log_policy, log_target, log_proposal, log_weight, ... with dims chain,
        draw, context), ``features`` and ``outcomes`` if given, and

        - ``diagnostics``: pooled over contexts (their mean; contexts are fixed). log_z, the
          divergences, kl_prior = KL(π‖prior), entropy of π, acceptance (share of finite weights),
          policy_<feature> and target_<feature>, each with dim ``statistic``: value, se, low,
          high, reliable; ess (summed), ess_min, ess_low (lower bound of the expected ESS, the
          least), ess_per_draw, pareto_khat (largest), and those of π/q as ess_policy,
          ess_low_policy, pareto_khat_policy.
        - ``diagnostics/contexts``: the same for every context.

        Attributes of ``diagnostics``: n, level, notes, ...

    Requirements
    ------------
    log P up to a constant per context; log q normalised. The draws are independent, and q is
    positive wherever p is. **Not covered**: regions that q reaches with probability below about
    3/n, a hidden mode. No draw lies in them, and the weights look as they would without: a mode
    of probability 0.001 and weight 1000 is missed by 500 draws six times out of ten, and half of
    Z is then missing from a claimed interval. A known ``log_bound`` covers it; without one compare
    log_z across proposals (`log_z_agreement`), and bound it from above (`log_z_bounds`).

    Raises
    ------
    ValueError
        For n < 2, NaN (how many, and where), shapes that differ, draws of probability 0.

    Notes
    -----
    - KL(π‖p) is ``inf``, and certainly so, once a draw of π is rejected by the target.
    - Where no draw is accepted, log_z is ``-inf``, and its ``high`` is a one-sided bound that
      assumes weights P/q ≤ 1 unless ``log_bound`` is given: P(accept) ≤ 1 − (1 − level)^(1/n),
      about 3/n at 95%. Target means of features are then NaN: undefined.
    - k̂ is itself an estimate: of weights whose tail index is 0.55 to 0.65 some records have k̂ below
      0.5, and claim intervals that hold less often than they say
      (tests/statistical/test_diagnostics_coverage.py).

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align import diagnostics
    >>> from infer_align.estimators import LogWeights
    >>> log_policy, log_target = np.log([0.5, 0.3, 0.2]), np.log([1.0, 0.6, 2.4])  # Z = 4
    >>> y = np.random.default_rng(0).choice(3, size=2000, p=np.exp(log_policy))
    >>> tree = diagnostics.assess(LogWeights(log_policy[y], log_target[y]))
    >>> e = diagnostics.estimates(tree)["log_z"]
    >>> e.reliable, bool(e.low < np.log(4.0) < e.high)
    (True, True)
    """
    d = draws(weights, log_prior, features)
    se = None if log_target_se is None else errors(log_target_se, tuple(weights.policy.shape))
    bound = None if log_bound is None else per_context(log_bound, tuple(weights.policy.shape[1:]))
    summary = summarise(d, divergences, level, log_target_se=se, log_bound=bound)
    if len(withdrawn := entries("withdrawn", withdrawn, of="texts")):
        summary = withdraw(summary, withdrawn)
    labels = context_labels(weights.context, contexts, d.log_policy.shape[1])
    attributes = {"level": level, "n": len(d.log_policy), "on_policy": int(d.on_policy)}
    if max_sample_score_difference is not None:
        difference = scalar("max_sample_score_difference", max_sample_score_difference)
        attributes["max_sample_score_difference"] = float(difference)
    stats = {
        "log_policy": d.log_policy,
        "log_target": d.log_target,
        "log_proposal": d.log_proposal,
        "log_weight": d.log_target_weight,
    }
    if d.log_prior is not None:
        stats["log_prior"] = d.log_prior
    kept = outcomes_by_site(outcomes, tuple(weights.policy.shape))
    groups = {"sample_stats": stats, "features": d.features, "outcomes": kept}
    return build_tree(groups, summary, labels, attributes)


def group_of(tree: Any, name: str) -> Any:
    """The data of a group of an assessed tree."""
    try:
        return tree[name].to_dataset()
    except (TypeError, KeyError, IndexError, ValueError, AttributeError):
        raise TypeError(
            f"tree must be an assessed tree, as assess and assess_sample give, got "
            f"{type(tree).__name__}"
        ) from None


def estimates(tree: "xarray.DataTree") -> dict[str, Estimate]:
    """Pooled estimates of an assessed tree, by name, in the order of the table.

    Parameters
    ----------
    tree : xarray.DataTree
        From `assess`.

    Returns
    -------
    dict of str to Estimate
        log_z, the divergences, kl_prior, entropy, acceptance, policy_* and target_* means.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align import diagnostics
    >>> from infer_align.estimators import LogWeights
    >>> tree = diagnostics.assess(LogWeights(np.full(300, -1.0), np.full(300, 1.0)))
    >>> float(diagnostics.estimates(tree)["log_z"].value)
    2.0
    """
    dataset = group_of(tree, "diagnostics")
    out = {}
    for name, variable in dataset.data_vars.items():
        if "statistic" in variable.dims:
            value, se, low, high, reliable = (float(x) for x in variable.values)
            out[str(name)] = Estimate(value, se, low, high, bool(reliable))
    return out


def save(tree: "xarray.DataTree", path: str | PathLike[str]) -> None:
    """Write an assessed tree as netCDF; ``xarray.open_datatree(path)`` reads it back.

    Parameters
    ----------
    tree : xarray.DataTree
        From `assess`.
    path : str or path
        File to write, usually ``....nc``.
    """
    tree.to_netcdf(path, engine="h5netcdf")


def context_labels(
    ids: Array | None, contexts: Sequence[str] | Sequence[int] | None, count: int
) -> np.ndarray:
    """Labels as given, else the ids of the contexts, else 0, 1, ..."""
    if contexts is None:
        return np.arange(count) if ids is None else numpy(ids).astype(int).reshape(-1)
    labels = np.asarray(contexts).reshape(-1)
    if len(labels) != count:
        raise ValueError(
            f"contexts has {len(labels)} labels and the log-weights {count} contexts; give one "
            "label a context"
        )
    return labels


def outcomes_by_site(
    outcomes: Array | Mapping[str, Array] | None, shape: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Outcomes by site, of shape (n, contexts, ...)."""
    sites = {} if outcomes is None else outcomes
    sites = sites if isinstance(sites, Mapping) else {"y": sites}
    return {name: _by_context(values, name, shape) for name, values in sites.items()}


def build_tree(
    samples: Mapping[str, Mapping[str, np.ndarray]],
    summary: Summary,
    labels: np.ndarray,
    attributes: dict[str, Any],
) -> "xarray.DataTree":
    """Groups of arrays (rows, contexts, ...), those that have any, and what was made of them."""
    import xarray
    from arviz_base import dict_to_dataset

    coords: dict[Any, Any] = {"context": labels}
    groups: dict[str, xarray.Dataset] = {}
    for group, variables in samples.items():
        if variables:
            with_chain = {name: values[None] for name, values in variables.items()}
            dims: dict[Any, Any] = {name: ["context"] for name in variables}
            groups[group] = dict_to_dataset(with_chain, coords=coords, dims=dims)
    notes = {**attributes, "notes": "\n".join(summary.notes)}
    statistic = {"statistic": list(STATISTICS)}
    groups["diagnostics"] = xarray.Dataset(
        {name: ("statistic", np.array(e, dtype=float)) for name, e in summary.pooled.items()}
        | {name: ((), value) for name, value in summary.pooled_weights.items()},
        coords=statistic,
        attrs=notes,
    )
    groups["diagnostics/contexts"] = xarray.Dataset(
        {name: (("statistic", "context"), e) for name, e in summary.contexts.items()}
        | {name: ("context", values) for name, values in summary.weights.items()},
        coords=statistic | coords,
    )
    return xarray.DataTree.from_dict(groups)


def _by_context(values: Array, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Outcomes (n, *contexts, ...) as (n, contexts, ...), in their own dtype."""
    array = np.asarray(values.detach().cpu() if is_torch_array(values) else values)
    if array.shape[: len(shape)] != shape:
        raise ValueError(
            f"outcomes {name!r} have shape {array.shape}; their leading axes must be those of "
            f"the log-weights, {shape}"
        )
    return array.reshape(shape[0], -1, *array.shape[len(shape) :])
