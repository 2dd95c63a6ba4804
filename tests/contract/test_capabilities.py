"""Every pair of a target and an objective either runs or raises, naming both and the remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import optax
import pyro
import pyro.distributions as pdist
import pytest
import torch

import infer_align as ia
from infer_align import estimators, targets
from infer_align.jax import fit as jax_fit
from infer_align.jax import tabular
from infer_align.torch import fit as torch_fit

torch.set_num_threads(1)
P = np.array([0.5, 0.3, 0.2])
DATA = np.array([0, 1, 1, 2, 2, 2])
EMPIRICAL = np.array([1, 2, 3]) / 6


class Softmax(torch.nn.Module):
    """A policy over 0, 1, 2 with one logit each."""

    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self):
        return pdist.Categorical(logits=self.logits)


def torch_program():
    y = pyro.sample("y", pdist.Categorical(torch.as_tensor(P)))
    pyro.factor("reward", 0.5 * y)


def jax_program():
    y = numpyro.sample("y", ndist.Categorical(probs=jnp.asarray(P)))
    numpyro.factor("reward", 0.5 * y)


def kinds(xp, prior, program):
    """One target of each kind, on one library."""
    wins = lambda y, other: 0.5 + 0.1 * (y - other)
    sample = targets.WeightedSample(xp.asarray(DATA), np.zeros(6), np.zeros(6))
    soft = ia.tilt(prior, lambda y: 0.5 * y, beta=1.0)
    return {
        "program": program,
        "tilt": soft,
        "condition": ia.condition(prior, lambda y: y != 1),
        "product": ia.product(prior, lambda y: 0.1 * y),
        "temper": targets.temper(soft, 2.0),
        "geometric_mixture": targets.geometric_mixture([prior, soft], [0.4, 0.6]),
        "preference_tilt": targets.preference_tilt(prior, wins, sample, 0.5),
        "demonstrations": targets.demonstrations(xp.asarray(DATA)),
        "sample": targets.demonstrations(sample),
        "teacher": targets.teacher(prior),
    }


TORCH = kinds(torch, pdist.Categorical(torch.as_tensor(P)), torch_program)
JAX = kinds(jnp, ndist.Categorical(probs=jnp.asarray(P)), jax_program)
KINDS = pytest.mark.parametrize("kind", TORCH)
ESTIMATORS = pytest.mark.parametrize("estimator", estimators.ALL, ids=lambda e: e.name)


def provides(target):
    return target.provides if isinstance(target, ia.Target) else frozenset({"log_density"})


def runs_or_refuses(target, estimator, run):
    """Run a step, or see that the refusal names the estimator and the remedy."""
    if estimator.requires <= provides(target):
        if not estimator.hard_constraints and getattr(target, "name", "") == "condition":
            with pytest.raises(ValueError, match="use f_dpg with"):
                run()
            return
        assert np.isfinite(run().metrics["grad_norm"])
        return
    remedy = "demonstrations" if "samples" in estimator.requires else r"maximum_likelihood\(\)"
    with pytest.raises(ValueError, match=remedy) as refusal:
        run()
    assert estimator.name in str(refusal.value)
    name = repr(target.name) if isinstance(target, ia.Target) else ""
    said = f"{name} provides {' and '.join(sorted(provides(target)))}"
    assert said in str(refusal.value)


@KINDS
@ESTIMATORS
def test_every_pair_in_torch(kind, estimator):
    """Fit steps over the torch targets."""
    run = lambda: next(torch_fit(Softmax(), TORCH[kind], estimator, n=32, steps=1))
    runs_or_refuses(TORCH[kind], estimator, run)


@KINDS
def test_every_target_in_jax(kind):
    """Every refusal in JAX; what runs is compiled for three kinds (the check is the same code)."""
    density = estimators.f_dpg(ia.divergences.jensen_shannon)
    for estimator in (density, estimators.maximum_likelihood()):
        runs = estimator.requires <= provides(JAX[kind])
        if runs and kind not in ("temper", "sample", "teacher"):
            continue
        run = lambda e=estimator: next(
            jax_fit(jax.random.key(0), tabular, jnp.zeros(3), JAX[kind], e, n=32, steps=1)
        )
        runs_or_refuses(JAX[kind], estimator, run)


def test_assess_needs_a_density():
    """An assessment of data is refused on both backends, before anything is drawn."""
    policy = Softmax()
    with pytest.raises(ValueError, match=r"assess needs log_density .* 'demonstrations' provides"):
        ia.torch.assess(policy, TORCH["demonstrations"])
    with pytest.raises(ValueError, match=r"assess needs log_density .* 'demonstrations' provides"):
        ia.jax.assess(jax.random.key(0), tabular(jnp.zeros(3)), JAX["demonstrations"])
    with pytest.raises(ValueError, match=r"a sampler needs log_density .* 'demonstrations'"):
        ia.torch.source(TORCH["demonstrations"], Softmax()())
    with pytest.raises(ValueError, match=r"a sampler needs log_density .* 'demonstrations'"):
        ia.jax.source(jax.random.key(0), JAX["demonstrations"], tabular(jnp.zeros(3)))


def test_what_is_missing_is_named():
    """Each capability has a remedy; an objective of next-token laws is told of teachers."""
    with pytest.raises(ValueError, match=r"per_token needs next_token .* teacher\(\)"):
        targets.check_provides(TORCH["tilt"], frozenset({"next_token"}), "per_token")
    assert {e.requires for e in estimators.ALL} == {
        frozenset({"log_density"}), frozenset({"samples"})
    }  # fmt: skip


def test_a_proposal_has_no_use_for_data():
    """Nothing is silently ignored: maximum likelihood draws from the target, and says so."""
    mle, proposal = estimators.maximum_likelihood(), tabular(jnp.zeros(3))
    with pytest.raises(ValueError, match="no use for a proposal"):
        next(jax_fit(jax.random.key(0), tabular, jnp.zeros(3), JAX["demonstrations"], mle,
                     proposal=proposal))  # fmt: skip
    with pytest.raises(ValueError, match="no use for a proposal"):
        torch_fit(Softmax(), TORCH["demonstrations"], mle, proposal=Softmax())
    weights = estimators.LogWeights(np.log(P), np.zeros(3))
    with pytest.raises(ValueError, match="drawn from the target"):
        estimators.check(mle, weights)
    missing = estimators.LogWeights(np.array([0.0, -np.inf]), np.zeros(2), np.zeros(2))
    with pytest.raises(ValueError, match="maximum_likelihood is infinite"):
        estimators.check(mle, missing)


def test_maximum_likelihood_fixed_point_is_the_data():
    """The expected gradient, over every batch, is pi - data: zero at the data's law only."""
    mle = estimators.maximum_likelihood()
    for policy in (P, EMPIRICAL):
        c = ia.testing.expected_coefficients(
            mle, np.log(policy), np.zeros(3), np.log(EMPIRICAL), n=3
        )
        gradient = ia.testing.expected_gradient(c, np.log(policy))
        np.testing.assert_allclose(gradient, policy - EMPIRICAL, atol=1e-12)


def test_fits_of_data_arrive_at_the_data():
    """Torch and JAX fits of weighted demonstrations end at the weighted law, within its noise."""
    weights = np.array([2.0, 1.0, 1.0, 0.0, 0.0, 1.0])
    want, n, steps = np.array([0.4, 0.4, 0.2]), 256, 40
    mle = estimators.maximum_likelihood()
    policy = Softmax()
    data = targets.demonstrations(torch.as_tensor(DATA), weights)
    optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
    run = torch_fit(policy, data, mle, n=n, steps=steps, optimizer=optimizer, max_grad_norm=None)
    *_, last = run
    in_torch = torch.softmax(policy.logits, 0).detach().numpy()
    data = targets.demonstrations(jnp.asarray(DATA), weights)
    *_, last_jax = jax_fit(jax.random.key(0), tabular, jnp.zeros(3), data, mle, n=n, steps=steps,
                           optimizer=optax.sgd(1.0))  # fmt: skip
    in_jax = np.asarray(jax.nn.softmax(last_jax.params))
    # SGD at rate 1 remembers about 1/p batches of n: a standard error below sqrt(p/n).
    for got in (in_torch, in_jax):
        assert (np.abs(got - want) < 5 * np.sqrt(want / n)).all()
    entropy = -want @ np.log(want)
    for step in (last, last_jax):
        assert abs(step.metrics["cross_entropy"] - entropy) < 0.2
        assert set(np.unique(np.asarray(step.outcomes))) <= {0, 1, 2}


def test_data_of_contexts_and_of_some_prompts():
    """Each prompt is fitted to its own demonstrations, also where a step takes only some."""

    class Table(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = torch.nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))

        def forward(self, prompts):
            return pdist.Categorical(logits=self.logits[torch.tensor(prompts)])

    own = torch.tensor([[0, 1, 2, 1]])  # one demonstration for each of four prompts
    policy = Table()
    optimizer = torch.optim.SGD(policy.parameters(), lr=5.0)
    run = torch_fit(policy, targets.demonstrations(own), estimators.maximum_likelihood(),
                    prompts=[0, 1, 2, 3], prompts_per_step=2, n=1, steps=60, optimizer=optimizer,
                    max_grad_norm=None)  # fmt: skip
    assert {tuple(step.outcomes.shape) for step in run} == {(1, 2)}
    assert policy.logits.argmax(-1).tolist() == own[0].tolist()
    short = targets.demonstrations(own[:, :3])
    with pytest.raises(ValueError, match="demonstrations for each prompt"):
        list(torch_fit(policy, short, estimators.maximum_likelihood(), prompts=[0, 1, 2, 3], n=1,
                       steps=1))  # fmt: skip


SHAPES = {
    "too many": ((6, 3), (2,)),
    "too few": ((6, 1), (2,)),
    "none": ((6,), (2,)),
    "weights of contexts": ((6, 2), ()),
}


@pytest.mark.parametrize(("shape", "contexts"), SHAPES.values(), ids=SHAPES)
def test_data_of_other_contexts_are_refused_as_the_fit_starts(shape, contexts):
    """In both libraries: data of three prompts do not fit two, nor weights of two a fit of none."""
    outcomes, weights = np.zeros(shape, dtype=int), np.ones(shape)
    mle = estimators.maximum_likelihood()
    said = r"'demonstrations' has outcomes of shape .* give demonstrations for each prompt"
    prompts = list(range(contexts[0])) if contexts else None
    with pytest.raises(ValueError, match=said):
        torch_fit(Softmax(), targets.demonstrations(torch.as_tensor(outcomes), weights), mle,
                  prompts=prompts)  # fmt: skip
    policy = lambda params: ndist.Categorical(logits=jnp.zeros((*contexts, 3)) + params)
    with pytest.raises(ValueError, match=said):
        jax_fit(jax.random.key(0), policy, jnp.zeros(3),
                targets.demonstrations(jnp.asarray(outcomes), weights), mle)  # fmt: skip


def test_a_resumed_fit_of_data_goes_on_as_before():
    """The draws of the data follow the generators of the state."""
    mle, data = estimators.maximum_likelihood(), TORCH["demonstrations"]

    def stepper(policy, steps, resume=None):
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.5)
        return torch_fit(policy, data, mle, n=4, steps=steps, optimizer=optimizer, resume=resume)

    whole, first = Softmax(), Softmax()
    list(stepper(whole, 6))
    *_, last = stepper(first, 3)
    list(stepper(first, 6, last.state.state_dict()))
    assert torch.equal(whole.logits, first.logits)
