"""`LogWeights` of any library, checked and moved to NumPy float64 of shape (n, contexts)."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from array_api_compat import is_torch_array

from infer_align._arguments import array as checked_array
from infer_align._arguments import instance, mapping, reals
from infer_align._numerics import Array, as_real
from infer_align.estimators import LogWeights


class Draws(NamedTuple):
    """Draws y ~ q and their log-probabilities; contexts are flattened to one axis."""

    log_policy: np.ndarray
    log_target: np.ndarray
    log_proposal: np.ndarray
    log_prior: np.ndarray | None
    features: dict[str, np.ndarray]
    on_policy: bool

    @property
    def log_target_weight(self) -> np.ndarray:
        """Unnormalised weights for expectations under the target, log P − log q."""
        return self.log_target - self.log_proposal

    @property
    def log_policy_weight(self) -> np.ndarray:
        """Weights for expectations under the policy, log π − log q: 0 on-policy."""
        if self.on_policy:
            return np.zeros_like(self.log_policy)
        return self.log_policy - self.log_proposal


def draws(
    weights: LogWeights,
    log_prior: Array | None = None,
    features: Mapping[str, Array] | None = None,
) -> Draws:
    """Check and move to NumPy; every error says how many entries of which array are at fault."""
    instance("weights", weights, LogWeights, "LogWeights(log_policy, log_target)")
    shape = tuple(checked_array("log policy", weights.policy).shape)
    arrays = {"policy": weights.policy, "target": weights.target}
    if weights.proposal is not None:
        arrays["proposal"] = weights.proposal
    if log_prior is not None:
        arrays["prior"] = log_prior
    moved = {name: _checked(array, f"log {name}", shape) for name, array in arrays.items()}
    columns = {
        name: _checked(values, f"feature {name!r}", shape, infinite=(-math.inf, math.inf))
        for name, values in mapping(
            "features", features, entries="arrays of shape (n, *contexts)"
        ).items()
    }
    n = shape[0]
    if n < 2 or 0 in shape:
        raise ValueError(
            f"a standard error needs at least 2 outcomes on axis 0 (and a context), got shape "
            f"{shape}; "
            "draw more, or move the outcomes to axis 0"
        )
    on_policy = weights.proposal is None
    proposal = moved.get("proposal", moved["policy"])
    if impossible := int(np.sum(proposal == -math.inf)):
        name = "policy" if on_policy else "proposal"
        raise ValueError(
            f"{impossible} of {proposal.size} outcomes have probability 0 under the {name} that "
            "they are said to be drawn from; pass the log-probabilities of the distribution that "
            "was sampled as LogWeights.proposal"
        )
    if (never := np.all(moved["policy"] == -math.inf, axis=0)).any():
        raise ValueError(
            f"the policy gives probability 0 to every draw in {never.sum()} of {len(never)} "
            "contexts, so nothing can be estimated under it; draw from a proposal that covers it"
        )
    return Draws(moved["policy"], moved["target"], proposal, moved.get("prior"), columns, on_policy)


def numpy(array: Array) -> np.ndarray:
    """NumPy float64 copy of an array of any library, without its gradient."""
    as_real(array, "an array given to the diagnostics")
    if is_torch_array(array):
        array = array.detach().cpu().double()
    return reals("what is given to the diagnostics", array)


def per_context(value: float | Array, shape: tuple[int, ...]) -> np.ndarray:
    """One number a context, (contexts,)."""
    try:
        return np.broadcast_to(numpy(value), shape).reshape(-1)
    except ValueError:
        raise ValueError(
            f"given was a number for each context of shape {np.shape(value)}, needed is one for "
            f"all, or {shape}"
        ) from None


def errors(array: Array, shape: tuple[int, ...]) -> np.ndarray:
    """Standard errors of log P, (n, contexts): finite and not negative."""
    values = _checked(array, "log_target_se", shape)
    if (count := int((values < 0).sum())) or not np.isfinite(values).all():
        raise ValueError(
            f"log_target_se has {count} negative and {int(np.isinf(values).sum())} infinite "
            f"entries among {values.size}; standard errors are finite and >= 0"
        )
    return values


def _checked(
    array: Array, name: str, shape: tuple[int, ...], infinite: tuple[float, ...] = (math.inf,)
) -> np.ndarray:
    if not shape or tuple(checked_array(name, array).shape) != shape:
        raise ValueError(
            f"{name} has shape {tuple(array.shape)} and log policy {shape}; all must be "
            "(n, *contexts), one number an outcome"
        )
    values = numpy(array).reshape(shape[0], -1)
    if count := int(np.isnan(values).sum()):
        raise ValueError(
            f"{name} has {count} NaN among its {values.size} entries; find them with "
            "isnan: a rejected outcome is -inf, and a reward that is missing must be resolved "
            "before it becomes a potential"
        )
    if count := int(np.isin(values, infinite).sum()):
        raise ValueError(
            f"{name} has {count} infinite entries among {values.size}; features must be finite, "
            "log densities finite or -inf for a rejected outcome"
        )
    return values
