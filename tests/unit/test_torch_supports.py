"""A Pyro policy whose support moves with its parameters is refused; constant bounds are not."""

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import transforms

from infer_align import divergences, f_dpg, tilt
from infer_align.torch import fit

POINT = dist.Normal(0.0, 1.0)


def affine(base, loc, scale):
    return dist.TransformedDistribution(base, [transforms.AffineTransform(loc, scale)])


def unchecked(low, high):
    """torch asks every component, and both signs, for values inside of their own."""
    return dist.Uniform(low, high, validate_args=False)


MOVING = {
    "uniform": lambda t: dist.Uniform(0.0, t),
    "expanded": lambda t: dist.Uniform(-t, 1.0).expand([3]).to_event(1),
    "pareto": lambda t: dist.Pareto(t, 3.0),
    "point": lambda t: dist.Delta(t),
    "location of a half-line": lambda t: affine(dist.Exponential(1.0), t, 1.0),
    "scale of an interval": lambda t: affine(dist.Beta(1.0, 2.0), 0.0, t),
    "scale of a simplex": lambda t: affine(dist.Dirichlet(torch.ones(3)), 0.0, t),
    "scale of a sigmoid": lambda t: dist.TransformedDistribution(
        POINT, [transforms.SigmoidTransform(), transforms.AffineTransform(0.0, t)]
    ),
    "folded": lambda t: dist.FoldedDistribution(unchecked(-t, 2 * t)),
    "mixture": lambda t: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)),
        unchecked(0.0, torch.stack([t, 2 * t])),
        validate_args=False,
    ),
}
FIXED = {
    "interval": lambda t: affine(dist.Beta(t, 2.0), 0.0, torch.tensor(2.0)),
    "detached": lambda t: affine(dist.Beta(t, 2.0), 0.0, t.detach()),
    "pareto": lambda t: dist.Pareto(torch.tensor(1.0), t),
    "scale of a half-line": lambda t: affine(dist.Exponential(1.0), 0.0, t),
    "a line": lambda t: affine(POINT, t, t),
    "to an interval": lambda t: dist.TransformedDistribution(
        dist.Normal(t, 1.0), [transforms.SigmoidTransform()]
    ),
    "kumaraswamy": lambda t: dist.Kumaraswamy(t, t),
    "gumbel": lambda t: dist.Gumbel(t, t),
    "weibull": lambda t: dist.Weibull(t, t),
    "inverse gamma": lambda t: dist.InverseGamma(t, t),
    "half normal": lambda t: dist.HalfNormal(t),
    "folded": lambda t: dist.FoldedDistribution(dist.Normal(t, 1.0)),
    "beta": lambda t: dist.Beta(t, t),
}


class Policy(torch.nn.Module):
    def __init__(self, law):
        super().__init__()
        self.law, self.t = law, torch.nn.Parameter(torch.tensor(0.8))

    def forward(self):
        return self.law(self.t)


def first(law):
    """The first step of a fit to a tilt of the policy's own initial law."""
    start = law(torch.tensor(0.8))
    reward = lambda y: y.reshape(len(y), -1).sum(-1)
    target = tilt(start, reward, beta=1.0)
    return next(fit(Policy(law), target, f_dpg(divergences.jensen_shannon), n=8))


@pytest.mark.parametrize("name", MOVING)
def test_a_policy_whose_support_moves_is_refused(name):
    with pytest.raises(ValueError, match=r"the policy.*bounds.*move.*use reparam"):
        first(MOVING[name])


@pytest.mark.parametrize("name", FIXED)
def test_a_policy_with_constant_bounds_is_fitted(name):
    step = first(FIXED[name])
    assert torch.isfinite(torch.tensor(step.metrics["grad_norm"]))
