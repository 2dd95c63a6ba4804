"""Where policies stand on the plane of reward and KL to the prior."""

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from infer_align._arguments import mapping, number
from infer_align._numerics import mean_under
from infer_align.diagnostics._summary import Estimate
from infer_align.diagnostics._tree import estimates

if TYPE_CHECKING:
    import xarray


class FrontierPoint(NamedTuple):
    """A policy's reward (or log-potential) and its KL to the prior, with their errors.

    Examples
    --------
    >>> from infer_align.diagnostics import Estimate, FrontierPoint
    >>> one = Estimate(1.0, 0.1, 0.8, 1.2, reliable=True)
    >>> FrontierPoint("fit", one, one).label
    'fit'
    """

    label: str
    kl: Estimate
    """KL(π‖prior), nats."""
    reward: Estimate
    """E_π of what ``quantity`` names."""
    quantity: str = "E[reward]"
    """For the axis: the log-potential is a reward divided by its temperature."""


def frontier_points(
    trees: "Mapping[str, xarray.DataTree]", *, feature: str | None = None, scale: float = 1.0
) -> tuple[FrontierPoint, ...]:
    """Points of assessed policies, to be held against the exact frontier.

    The frontier itself, the most reward that a KL budget buys, is
    `infer_align.exact.tilts.frontier` where the reward's law is known.

    Parameters
    ----------
    trees : mapping of label to xarray.DataTree
        From `assess`, with ``log_prior``.
    feature : str, optional
        Name of the feature that is the reward. Default: the log-potential log P − log prior,
        which is reward/beta of a tilt.
    scale : float
        The reward is multiplied by this: beta, to make a reward of the potential.

    Returns
    -------
    tuple of FrontierPoint
        Pooled over contexts.

    Raises
    ------
    ValueError
        If an assessment knows no prior, or not the feature; or if the target rejected draws, so
        that the mean potential is −inf.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align import diagnostics
    >>> from infer_align.estimators import LogWeights
    >>> y = np.random.default_rng(0).choice(2, size=4000, p=[0.2, 0.8])
    >>> log_policy, log_prior = np.log([0.2, 0.8])[y], np.log([0.5, 0.5])[y]
    >>> tree = diagnostics.assess(LogWeights(log_policy, log_prior + y), log_prior=log_prior)
    >>> (point,) = diagnostics.frontier_points({"policy": tree})
    >>> bool(point.reward.low < 0.8 < point.reward.high)
    True
    """
    scale = number("scale", scale)
    named = mapping("trees", trees, entries="assessed trees", optional=False)
    return tuple(_point(label, tree, feature, scale) for label, tree in named.items())


def _point(label: str, tree: "xarray.DataTree", feature: str | None, scale: float) -> FrontierPoint:
    found = estimates(tree)
    if "kl_prior" not in found:
        raise ValueError(
            f"the assessment {label!r} has no KL to the prior; give assess the draws' log_prior"
        )
    if feature is None:
        quantity = "E[log-potential]" if scale == 1 else f"{scale:g} E[log-potential]"
        value = _scaled(_potential(label, tree), scale)
        return FrontierPoint(label, found["kl_prior"], value, quantity)
    name = f"policy_{feature}"
    if name not in found:
        known = [n.removeprefix("policy_") for n in found if n.startswith("policy_")]
        raise ValueError(
            f"the assessment {label!r} has no feature {feature!r}; it has {known or 'none'}"
        )
    quantity = f"E[{feature}]" if scale == 1 else f"{scale:g} E[{feature}]"
    return FrontierPoint(label, found["kl_prior"], _scaled(found[name], scale), quantity)


def _potential(label: str, tree: "xarray.DataTree") -> Estimate:
    """E_π[log P − log prior], from draws of π or weighed ones."""
    stats = tree["sample_stats"].to_dataset()
    column = lambda name: np.asarray(stats[name])[0]
    if not np.isfinite(column("log_target")).all():
        raise ValueError(
            f"the target rejected draws of {label!r}, so their mean log-potential is -inf; give "
            "feature=, the name of a reward that is finite"
        )
    potential = column("log_target") - column("log_prior")
    log_v = column("log_policy") - column("log_proposal")
    v = np.exp(log_v - log_v.max(axis=0))
    v = v / v.mean(axis=0)
    mean = mean_under(v / len(v), potential)
    n, contexts = potential.shape
    se = math.sqrt(float(((v * (potential - mean)).var(axis=0, ddof=1) / n).sum())) / contexts
    attributes = tree["diagnostics"].attrs
    half = NormalDist().inv_cdf(0.5 + attributes["level"] / 2) * se
    value = float(mean.mean())
    return Estimate(value, se, value - half, value + half, estimates(tree)["kl_prior"].reliable)


def _scaled(e: Estimate, scale: float) -> Estimate:
    ends = sorted((e.low * scale, e.high * scale))
    return Estimate(e.value * scale, e.se * abs(scale), *ends, reliable=e.reliable)
