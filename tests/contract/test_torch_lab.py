"""The laboratory on language models: exact gradients, real steps, and claims put to the test."""

import numpy as np
import pyro
import pyro.distributions as pd
import pytest
import torch

from infer_align import Space, divergences, estimators
from infer_align.torch import fit, lab
from models import tiny_gpt2

LOG_Z = tiny_gpt2.REFERENCE["log_z"]["value"]
SPACE = Space.sequences(5, 4, eos=4, pad=4, xp=torch)


@pytest.fixture(scope="module")
def setting():
    lm = tiny_gpt2.model()
    policy = lm.trainable()
    some = {n: p for n, p in policy.named_parameters() if n.endswith("ln_f.bias")}
    return lm, policy, some


@pytest.fixture(scope="module")
def comparison(setting):
    lm, policy, some = setting
    choices = {
        "none": estimators.reinforce(baseline=estimators.none()),
        "loo": estimators.reinforce(),
        "mean": estimators.reinforce(baseline=estimators.mean()),
        "js": estimators.f_dpg(
            divergences.jensen_shannon, log_z=estimators.known_log_z(LOG_Z)
        ),
    }  # fmt: skip
    target = tiny_gpt2.target(lm)
    return lab.compare_policy_gradients(
        policy, target, choices, space=SPACE, parameters=some, n=700, outcomes=8
    )


@pytest.mark.parametrize(
    ("label", "divergence"),
    [("loo", divergences.reverse_kl), ("js", divergences.jensen_shannon)],
)
def test_exact_gradient_is_that_of_the_divergence(setting, comparison, label, divergence):
    lm, policy, some = setting
    log_policy = policy(None).log_prob(SPACE.outcomes)
    with torch.no_grad():
        density = lm(None).log_prob(SPACE.outcomes)
        density += tiny_gpt2.reward(SPACE.outcomes) / tiny_gpt2.BETA
    loss = divergence(log_policy, density.log_softmax(0))
    (gradient,) = torch.autograd.grad(loss, list(some.values()))
    found = torch.as_tensor(comparison[label].exact)
    assert torch.allclose(found, gradient, rtol=1e-8, atol=1e-10)


def test_claims_hold_and_the_scaled_one_shows(comparison):
    assert [row.claim for row in comparison.rows] == [
        "unbiased", "unbiased", "scaled by 1 - 1/n", "unbiased",
    ]  # fmt: skip
    assert [row.covers_zero for row in comparison.rows] == [True, True, False, True]
    shrunk = comparison["mean"].mean @ comparison["mean"].exact
    norm = comparison["mean"].exact @ comparison["mean"].exact
    assert abs(shrunk / norm - 7 / 8) < 0.09
    assert comparison["loo"].total_variance < 0.8 * comparison["none"].total_variance
    assert all(row.flops > 1e5 and row.seconds > 0 for row in comparison.rows)
    assert comparison.names[0] == "transformer.ln_f.bias[0]"
    assert "! scaled by 1 - 1/n" in str(comparison)


def test_a_step_has_the_gradient_of_the_table(setting):
    """What the laboratory adds up from its list is what `fit` leaves in the parameters."""
    from infer_align.diagnostics import _policy_gradients as listed
    from infer_align.torch.contexts import bind

    lm, policy, _ = setting
    estimator, program = estimators.reinforce(), tiny_gpt2.target(lm)
    fresh = lm.trainable()
    optimizer = torch.optim.SGD(fresh.parameters(), lr=0.0)
    step = next(
        fit(fresh, program, estimator, n=40, steps=1, optimizer=optimizer, max_grad_norm=None)
    )
    named = {n: p for n, p in policy.named_parameters() if "h.1.ln_2" in n}
    target, contexts = bind(program, None, None)
    bench = lab._Bench(policy, None, target, contexts, SPACE, list(named.values()), 40)
    table, _ = bench.listed({})
    index = SPACE.index(step.outcomes)
    assert len(set(index.tolist())) < 40  # some are drawn twice
    batches = index[None].repeat(listed.WARM_UP + 1, axis=0)
    found = listed.gradients(table, estimator, batches)[0]
    whole = dict(fresh.named_parameters())
    expected = torch.cat([whole[n].grad.reshape(-1) for n in named])
    assert torch.allclose(torch.as_tensor(found), expected, rtol=1e-8, atol=1e-10)


def test_contexts_and_a_proposal():
    """Two prompts with laws of their own, drawn from other laws."""
    logits = torch.tensor([[0.3, -0.2, 0.1], [0.0, 0.5, -1.0]], dtype=torch.float64)
    logits.requires_grad_()
    reward = torch.tensor([[0.0, 1.0, 0.5], [1.0, 0.0, 2.0]], dtype=torch.float64)

    def program(prompts):
        y = pyro.sample("y", pd.Categorical(logits=torch.zeros(2, 3, dtype=torch.float64)))
        pyro.factor("reward", reward[torch.arange(2), y])

    proposal = pd.Categorical(logits=torch.zeros(2, 3, dtype=torch.float64))
    learnt = estimators.trajectory_balance(log_z=estimators.learnt_log_z(np.zeros(2)))
    found = lab.compare_policy_gradients(
        lambda prompts: pd.Categorical(logits=logits), program,
        {"rkl": estimators.reinforce(), "tb": learnt},
        space=Space(torch.arange(3)), prompts=["a", "b"], parameters={"logits": logits},
        proposal=lambda prompts: proposal, n=300, outcomes=4,
    )  # fmt: skip
    kl = divergences.reverse_kl(logits.log_softmax(-1).T, reward.log_softmax(-1).T).mean()
    (exact,) = torch.autograd.grad(kl, logits)
    assert torch.allclose(torch.as_tensor(found["rkl"].exact), exact.reshape(-1), rtol=1e-9)
    assert found["rkl"].covers_zero
    assert found["tb"].exact is None  # its loss moves with the log Z that it learns
    assert found.names[3] == "logits[1, 0]"


def test_errors(setting):
    lm, policy, some = setting
    target, choice = tiny_gpt2.target(lm), {"loo": estimators.reinforce()}
    with pytest.raises(ValueError, match=r"gets them with .trainable"):
        lab.compare_policy_gradients(lm, target, choice, space=SPACE)
    with pytest.raises(ValueError, match="named_parameters"):
        lab.compare_policy_gradients(lambda: lm(None), target, choice, space=SPACE)
    with pytest.raises(ValueError, match="does not require a gradient"):
        lab.compare_policy_gradients(
            policy, target, choice, space=SPACE, parameters={"x": torch.zeros(2)}
        )
    short = Space.sequences(5, 3, eos=4, pad=4, xp=torch)
    padded = Space(torch.nn.functional.pad(short.outcomes, (0, 1), value=4))
    with pytest.raises(ValueError, match="miss 1 by"):
        lab.compare_policy_gradients(policy, target, choice, space=padded, parameters=some)
    hard = estimators.reinforce()

    def never(prompts=None):
        y = pyro.sample("y", lm(prompts))
        pyro.factor("no b", torch.where((y == 2).any(-1), -torch.inf, 0.0).double())

    with pytest.raises(ValueError, match=r"'hard': .* unbounded coefficients"):
        lab.compare_policy_gradients(
            policy, never, {"hard": hard}, space=SPACE, parameters=some, n=50
        )
