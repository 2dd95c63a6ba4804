"""Hidden Markov priors, of NumPyro and of Pyro: solved through the tokens alone."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pyro.distributions as pyro_dist
import pytest
import torch

from infer_align import exact
from infer_align.jax import hidden_markov

INITIAL = np.array([0.6, 0.4])
TRANSITION = np.array([[0.9, 0.1], [0.2, 0.8]])
EMISSION = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
REWARD = np.array([[1.0, -0.5, 0.0], [0.25, 1.0, 0.0], [0.0, 0.5, 2.0]])


def logs(*tables):
    names = ("initial", "transition", "emission")
    return {name: jnp.log(jnp.asarray(x)) for name, x in zip(names, tables, strict=True)}


def numpyro_program(length, params=None):
    def program():
        given = logs(INITIAL, TRANSITION, EMISSION) if params is None else params
        y = numpyro.sample("y", hidden_markov(given, length=length))
        numpyro.factor("pairs", jnp.asarray(REWARD)[y[:-1], y[1:]].sum())

    return program


def pyro_program(length):
    """Pyro's model makes a transition before the first token."""

    def program():
        hmm = pyro_dist.DiscreteHMM(
            torch.tensor(INITIAL).log(),
            torch.tensor(TRANSITION).log(),
            pyro_dist.Categorical(probs=torch.tensor(EMISSION)),
            duration=length,
        )
        y = pyro.sample("y", hmm)
        pyro.factor("pairs", torch.tensor(REWARD)[y[..., :-1], y[..., 1:]].sum(-1))

    return program


@pytest.mark.parametrize(
    "program", [pytest.param(numpyro_program, marks=pytest.mark.slow), pyro_program]
)
def test_messages_over_hidden_states_are_the_listed_sequences(program):
    listed, passed = exact.by_sequences(program(4)), exact.by_messages(program(4))
    for name in ("log_z", "expected_log_potential", "kl_to_prior"):
        assert float(getattr(passed, name)) == pytest.approx(float(getattr(listed, name)), rel=1e-9)
    assert passed.entropy is None
    assert listed.entropy is not None


@pytest.mark.slow
def test_a_long_hidden_model_is_the_chain_over_pairs():
    chain = exact.Chain.hidden(INITIAL, TRANSITION, EMISSION, REWARD.tolist(), 50).solve(1.0)
    answer = exact.solve(numpyro_program(50))
    assert answer.engine == "messages"
    assert float(answer.log_z) == pytest.approx(float(chain.log_z), rel=1e-12)
    assert float(answer.kl_to_prior) == pytest.approx(float(chain.kl_to_prior), rel=1e-10)


def test_pyros_first_transition_comes_before_the_first_token():
    chain = exact.Chain.hidden(INITIAL @ TRANSITION, TRANSITION, EMISSION, REWARD.tolist(), 50)
    answer = exact.solve(pyro_program(50))
    assert float(answer.log_z) == pytest.approx(float(chain.solve(1.0).log_z), rel=1e-9)


@pytest.mark.slow
def test_log_z_has_a_gradient_in_the_emissions():
    def log_z(emission):
        params = logs(INITIAL, TRANSITION, EMISSION) | {"emission": emission}
        return exact.by_messages(numpyro_program(6, params)).log_z

    emission = jnp.log(jnp.asarray(EMISSION))
    gradient = jax.grad(log_z)(emission)
    step = 1e-5
    for i, j in ((0, 0), (1, 2)):
        plus, minus = (log_z(emission.at[i, j].add(s)) for s in (step, -step))
        assert float(gradient[i, j]) == pytest.approx(float(plus - minus) / (2 * step), rel=1e-6)


def test_a_policy_of_other_shapes_or_keys_is_refused():
    params = logs(INITIAL, TRANSITION, EMISSION)
    with pytest.raises(ValueError, match=r"'initial', 'transition' and 'emission'"):
        hidden_markov({"initial": params["initial"]}, length=3)
    with pytest.raises(ValueError, match=r"needed are .*H, V"):
        hidden_markov(params | {"emission": params["emission"].T}, length=3)
    with pytest.raises(ValueError, match="at least 1"):
        hidden_markov(params, length=0)
    policy = hidden_markov(params, length=3)
    assert float(policy.log_prob(jnp.array([0, 1, 7]))) == -np.inf
