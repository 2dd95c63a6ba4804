"""Values from elsewhere have density 0 outside the support of a torch or Pyro distribution."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import transforms

from infer_align import _supports, divergences, f_dpg, tilt
from infer_align.torch import BestOfN, collect, fit, mixture, source, target

PROBS = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
REAL = torch.tensor([-1.5, -0.5, 0.25, 0.75, 1.5, 3.5], dtype=torch.float64)
WHOLE = torch.tensor([-1, 0, 1, 2, 3, 7])
CASES = {
    "half normal": (dist.HalfNormal, REAL, REAL > 0),
    "log normal": (lambda s: dist.LogNormal(0.0, s), REAL, REAL > 0),
    "gamma": (lambda a: dist.Gamma(a, 2.0), REAL, REAL > 0),
    "beta": (lambda a: dist.Beta(a, 2.0), REAL, (REAL > 0) & (REAL < 1)),
    "moved": (
        lambda a: dist.TransformedDistribution(
            dist.Uniform(0.0, 1.0), [transforms.AffineTransform(a, 2.0)]
        ),
        REAL, (REAL > 1) & (REAL < 3),
    ),
    "event": (
        lambda a: dist.HalfNormal(a).expand([3]).to_event(1), REAL.reshape(2, 3),
        torch.tensor([False, True]),
    ),
    "mixture": (
        lambda a: dist.MixtureSameFamily(
            dist.Categorical(PROBS), dist.Gamma(a * torch.tensor([1.0, 2.0, 3.0]), 1.0)
        ),
        REAL, REAL > 0,
    ),
    "masked": (
        lambda a: dist.HalfNormal(a).mask(REAL != -1.5), REAL, (REAL > 0) | (REAL == -1.5)
    ),
    "categorical": (lambda a: dist.Categorical(a * PROBS), WHOLE, (WHOLE >= 0) & (WHOLE < 3)),
    "poisson": (dist.Poisson, WHOLE, WHOLE >= 0),
    "bernoulli": (lambda a: dist.Bernoulli(a / 3), 1.0 * WHOLE, (WHOLE == 0) | (WHOLE == 1)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("validate", [True, False])
def test_the_density_is_0_outside_and_its_derivatives_are_finite(
    case: str, validate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", validate)
    make, value, inside = CASES[case]
    a = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    found = _supports.log_prob(make(a), value)
    assert torch.equal(torch.isfinite(found), inside)
    if case not in ("event", "masked"):
        right = make(a).log_prob(torch.where(inside, value, value[inside][0]))
        assert torch.equal(found[inside], right[inside])
    used = torch.where(found.isfinite(), found, 0.0).sum()
    if used.requires_grad:  # the density of what is moved does not depend on where to
        used.backward()
        assert a.grad.isfinite()


def test_a_component_may_be_narrower_than_the_mixture() -> None:
    high = torch.tensor([1.0, 2.0])
    parts = dist.Uniform(torch.zeros(2), high, validate_args=False)
    both = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts, validate_args=False)
    found = _supports.log_prob(both, torch.tensor([0.5, 1.5, 2.5])).exp()
    assert torch.allclose(found, torch.tensor([0.75, 0.25, 0.0]))


def program():
    y = pyro.sample("y", dist.HalfNormal(torch.tensor(1.0, dtype=torch.float64)))
    pyro.factor("reward", -y)


LOG_Z = math.log(2 * math.exp(0.5) * 0.5 * math.erfc(1 / math.sqrt(2)))
WIDE = dist.Normal(torch.tensor(0.0, dtype=torch.float64), 1.5)
DECLARED = {
    "program": lambda: target(program),
    "prior": lambda: tilt(dist.HalfNormal(torch.tensor(1.0).double()), lambda y: -y, beta=1.0),
}
PROPOSALS = {
    "normal": lambda: WIDE,
    "mixture": lambda: mixture([WIDE, dist.HalfNormal(torch.tensor(1.0).double())], [1.0, 1.0]),
}


@pytest.mark.parametrize("declared", DECLARED)
@pytest.mark.parametrize("proposal", PROPOSALS)
def test_a_wider_proposal_estimates_the_closed_form(declared: str, proposal: str) -> None:
    law = source(DECLARED[declared](), PROPOSALS[proposal]())
    drawn = law.draw(40_000)
    w, y = np.exp(drawn.log_target - drawn.log_proposal), drawn.outcomes.numpy()
    assert (y < 0).any()
    assert not w[y < 0].any()
    assert abs(w.mean() - math.exp(LOG_Z)) < 5 * w.std() / 200
    assert np.isneginf(law.log_target(torch.tensor([-1.0]))).all()


def test_a_proposal_is_scored_at_outcomes_of_others() -> None:
    narrow = dist.Uniform(torch.tensor(0.0).double(), 2.0)
    law = source(target(program), narrow)
    found = law.log_proposal(torch.tensor([1.0, 3.0]).double())
    np.testing.assert_allclose(found, [-math.log(2), -np.inf])


class Policy(torch.nn.Module):
    """Two letters."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, prompts=None):
        return dist.Categorical(logits=self.logits)


def test_a_policy_has_weight_0_at_outcomes_that_it_never_draws() -> None:
    full = dist.Categorical(PROBS)
    given = Policy(), tilt(full, lambda y: 0.0 * y, beta=1.0)
    options = {"n": 50, "steps": 1, "proposal": lambda *_: full}
    step = next(iter(fit(*given, f_dpg(divergences.jensen_shannon), **options)))
    assert torch.equal(torch.isneginf(step.weights.policy), step.outcomes == 2)
    with pytest.raises(ValueError, match="probability 0 to outcomes of the target"):
        next(iter(fit(*given, f_dpg(divergences.forward_kl), **options)))
    draws = collect(*given, n=100, proposal=lambda *_: full)
    assert np.isneginf(np.asarray(draws.weights.policy)).any()


def test_the_best_of_n_has_the_support_of_its_base() -> None:
    best = BestOfN(dist.Categorical(PROBS), lambda y: 1.0 * y, 4)
    assert torch.isneginf(best.log_prob(torch.tensor([-1, 3]))).all()


def test_a_program_at_sites_and_data_outside() -> None:
    def declared():
        z = pyro.sample("z", dist.HalfNormal(torch.ones(())))
        pyro.sample("x", dist.Exponential(torch.ones(())), obs=1.0 - z)

    found = target(declared).log_density(torch.tensor([-1.0, 0.5, 2.0]))
    assert torch.equal(torch.isneginf(found), torch.tensor([True, False, True]))
