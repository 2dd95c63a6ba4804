r"""Supports whose bounds move with the parameters, where the score function is wrong.

.. math:: \nabla_θ \int_{a(θ)}^{b(θ)} q_θ f = E[f \nabla\log q_θ] + q_θ(b)f(b)b' - q_θ(a)f(a)a'

The first term is the score function. What moves is found from ``support`` and from where the bounds
of a transformed distribution come to lie, as tensors, by their derivatives in the parameters.
"""

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as pyro_dist
import torch
import torch.distributions as dist
from torch import Tensor
from torch.distributions import constraints

__all__ = ["refuse_moving_support"]

WRAPPERS = (dist.Independent, pyro_dist.MaskedDistribution)


def refuse_moving_support(policy: Any, parameters: Sequence[Tensor]) -> None:
    """Refuse a policy whose support's bounds have a derivative in its parameters.

    Parameters
    ----------
    policy : torch or Pyro Distribution
    parameters : list of tensor

    Raises
    ------
    ValueError
    """
    if not isinstance(policy, dist.Distribution):
        return
    with torch.enable_grad():
        if any(_moves(bound, parameters) for bound in _bounds(policy)):
            raise ValueError(
                "the policy, whose gradient is the score function, has a support whose bounds "
                f"move with its parameters ({type(_inside(policy)).__name__}), and E[f ∇log q] "
                "leaves out what crosses them: the gradient would be wrong; use reparam "
                "(infer_align.jax.programs, or Pyro's Trace_ELBO), or hold the bounds fixed with "
                ".detach()"
            )


def _moves(bound: Tensor, parameters: Sequence[Tensor]) -> bool:
    if not (bound.requires_grad and bool(torch.isfinite(bound).all())):
        return False
    weights = torch.linspace(1.0, 2.0, bound.numel(), dtype=bound.dtype, device=bound.device)
    total = (bound.reshape(-1) * weights).sum()
    slopes = torch.autograd.grad(total, list(parameters), retain_graph=True, allow_unused=True)
    return any(slope is not None and bool((slope != 0).any()) for slope in slopes)


def _inside(d: Any) -> Any:
    """The distribution inside Independent, ExpandedDistribution and MaskedDistribution."""
    while isinstance(d, (*WRAPPERS, pyro_dist.ExpandedDistribution)):
        d = d.base_dist
    return d


def _each(support: Any) -> Any:
    """The constraint of each entry."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _bounds(d: Any) -> list[Tensor]:
    """Bounds of the support, and of the distributions inside."""
    d = _inside(d)
    if isinstance(d, pyro_dist.Delta):  # a point: that is all its support
        return [d.v]
    if isinstance(d, dist.MixtureSameFamily):
        return _bounds(d.component_distribution)
    # A family that says its support itself knows it: those of its base may only be numerical.
    says = type(d).support is not dist.TransformedDistribution.support
    folded = isinstance(d, pyro_dist.FoldedDistribution)
    if isinstance(d, dist.TransformedDistribution) and (folded or not says):
        return _images(d)
    each = _each(getattr(d, "support", None))
    ends = (getattr(each, "lower_bound", None), getattr(each, "upper_bound", None))
    return [end for end in ends if isinstance(end, Tensor)]


def _images(d: Any) -> list[Tensor]:
    """Where the bounds of what is transformed come to lie, infinite ones included.

    torch takes the image of a half-line or an interval under an affine map for the whole line.
    """
    base = d.base_dist
    each, shape = _each(base.support), (*base.batch_shape, *base.event_shape)
    ends = [getattr(each, "lower_bound", -math.inf), getattr(each, "upper_bound", math.inf)]
    if each is constraints.simplex:  # without bounds of single numbers: it moves if a point does
        ends = [1 / shape[-1]]
    images = []
    for end in ends:
        image = torch.as_tensor(end, dtype=torch.get_default_dtype()).expand(shape)
        for transform in d.transforms:
            image = transform(image)
        images.append(image)
    return images
