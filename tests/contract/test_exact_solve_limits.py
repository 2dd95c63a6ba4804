"""What `solve` refuses and why, contexts, gradients, and the law of a target's own reward."""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pyro
import pyro.distributions as pyro_dist
import pytest
import torch

import infer_align as ia
from infer_align import Target, condition, exact, product, tilt
from infer_align.exact import Automaton, potential_law
from infer_align.jax import markov, memoryless

P = np.array([0.5, 0.3, 0.2])
LETTERS = np.array([1.0, -0.5, 0.3])
FOLLOWS = torch.tensor([[1, 1, 0], [0, 0, 1], [1, 0, 0]]).bool()
BY = {name: getattr(exact, f"by_{name}") for name in ("sequences", "types", "letters", "messages")}


def t64(x):
    return torch.tensor(np.asarray(x), dtype=torch.float64)


def iid(length=4, probs=P):
    return pyro_dist.Categorical(t64(probs)).expand([length]).to_event(1)


def letters(y):
    return t64(LETTERS)[y].sum(-1)


def long_range(y):
    """First against last token: no sum over neighbours, and it depends on the order."""
    return 2.0 * (y[..., 0] == y[..., -1]) + 0.25 * (y == 1).sum(-1)


def test_by_types_shows_two_orders_of_one_sequence_and_their_potentials():
    with pytest.raises(ValueError, match="the potential depends on the order") as refused:
        exact.by_types(Target(iid(), lambda y: 1.0 * y[..., 0]))
    found = [json.loads(x) for x in re.findall(r"\[[^]]*\]", str(refused.value))]
    first, second = found
    assert sorted(first) == sorted(second)
    assert first[0] != second[0]
    assert f"it is {first[0]}, of" in str(refused.value)
    assert str(refused.value).endswith(f"] {second[0]}")


@pytest.mark.parametrize(
    ("engine", "potential", "message"),
    [
        ("letters", long_range, r"a sum over positions: of \[.*\] it is .*, and the terms"),
        ("letters", lambda y: (y == 2).sum(-1) ** 2.0, "not a sum over positions"),
        ("messages", long_range, "not a sum over neighbouring pairs"),
        ("messages", lambda y: (y == 2).sum(-1) ** 2.0, "not a sum over neighbouring pairs"),
        ("letters", lambda y: 1.0 * (y[..., 1:] == 0).any(-1), "not a sum over positions"),
        ("messages", lambda y: ia.indicator((y[..., 1:] != y[..., :-1]).any(-1)),
         "not a sum over neighbouring pairs: .* it is -inf"),
        ("messages", lambda y: ia.indicator((y == torch.tensor([0, 1, 2, 0])).all(-1)),
         "rejects every sequence of one letter repeated"),
        # 0 → 0 or 1, 1 → 2, 2 → 0: a single change of 0000 shows no 2.
        ("messages", lambda y: ia.indicator(FOLLOWS[y[..., :-1], y[..., 1:]].all(-1)),
         "cannot be read off its values: of .* multiply an exact.Automaton"),
    ],
)  # fmt: skip
def test_a_potential_of_another_form_is_refused_with_a_sequence_that_shows_it(
    engine, potential, message
):
    with pytest.raises(ValueError, match=message):
        BY[engine](Target(iid(), potential))


def test_what_the_terms_add_up_to_is_quoted():
    with pytest.raises(ValueError, match="sum over positions") as refused:
        exact.by_letters(Target(iid(2), lambda y: 1.0 * (y == 2).all(-1)))
    assert "of [2, 2] it is 1, and the terms that single changes show add up to 0" in str(
        refused.value
    )


def test_solve_says_why_each_engine_does_not_fit_and_how_large_it_would_be():
    with pytest.raises(ValueError, match="cannot be solved exactly") as refused:
        exact.solve(Target(iid(60), long_range, "ends"))
    text = str(refused.value)
    assert text.startswith("target 'ends' cannot")
    assert "sequences: about 1e28 sequences of 60 tokens (at most 4,000,000 tokens in all)" in text
    assert "types: the potential depends on the order of tokens" in text
    assert "letters: the potential is not a sum over positions" in text
    assert "messages: the potential is not a sum over neighbouring pairs" in text
    assert "exact.reward_law" in text
    for engine in BY.values():
        with pytest.raises(ValueError, match=r"at most 4,000,000|the potential"):
            engine(Target(iid(60), long_range, "ends"))
    wide = pyro_dist.Categorical(t64(np.full((8, 600), 1 / 600))).to_event(1)
    with pytest.raises(ValueError, match=r"8 positions with 600² pairs of (tokens|states)"):
        exact.by_messages(Target(wide, lambda y: 0.0 * y[..., 0]))
    with pytest.raises(ValueError, match=r"count vectors of 8 tokens"):
        exact.by_types(Target(wide, lambda y: 0.0 * y[..., 0]))
    with pytest.raises(ValueError, match=r"tokens to read the terms off"):
        exact.by_letters(Target(iid(4000), letters))


def test_engines_ask_for_the_prior_that_they_need():
    chain = markov({"initial": jnp.zeros(2), "transition": jnp.zeros((2, 2))}, length=3)
    target = Target(chain, lambda y: 1.0 * y.sum(-1))
    for engine in ("types", "letters"):
        with pytest.raises(ValueError, match="tokens are not independent"):
            BY[engine](target)
    with pytest.raises(ValueError, match="not independent and of a fixed number, or an automaton"):
        exact.by_letters(product(iid(), Automaton([[0, 0, 0]], [True])))
    gaussian = Target(pyro_dist.Normal(t64(0.0), 1.0), lambda y: 1.0 * y)
    with pytest.raises(ValueError, match="is a Normal, which is not known here as a finite set"):
        exact.solve(gaussian)
    with pytest.raises(TypeError, match="needed is a Target or a program, got int"):
        exact.solve(3)


@pytest.mark.parametrize("engine", BY)
def test_a_target_that_accepts_nothing_is_an_error_that_says_so(engine):
    # The letter that is asked for never comes; given probs, torch would allow it 1e-16.
    logits = t64([-0.5, -0.9, -math.inf])
    impossible = pyro_dist.Categorical(logits=logits).expand([4]).to_event(1)
    if engine == "messages":
        target = product(iid(), Automaton([[0, 0, 0]], [False]))
    elif engine == "letters":
        target = Target(impossible, lambda y: torch.where(y == 2, 0.0, -math.inf).sum(-1).double())
    else:
        target = condition(impossible, lambda y: (y == 2).any(-1))
    with pytest.raises(ValueError, match=r"accepts (no|none)"):
        BY[engine](target)


def numpyro_pair():
    a = numpyro.sample("a", numpyro_dist.Categorical(jnp.array([0.4, 0.6])))
    b = numpyro.sample("b", numpyro_dist.Categorical(jnp.array([0.4, 0.6])))
    numpyro.factor("same", 1.0 * (a == b))


def pyro_pair():
    a = pyro.sample("a", pyro_dist.Categorical(torch.tensor([0.4, 0.6])))
    b = pyro.sample("b", pyro_dist.Categorical(torch.tensor([0.4, 0.6])))
    pyro.factor("same", 1.0 * (a == b))


@pytest.mark.parametrize("program", [numpyro_pair, pyro_pair])
@pytest.mark.parametrize("engine", [exact.by_sequences, exact.by_types, exact.by_messages])
def test_engines_of_one_site_refuse_a_program_of_two(program, engine):
    with pytest.raises(ValueError, match="another latent site, 'b', after its first"):
        engine(program)


JAX_TABLE = jnp.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])


def numpyro_contexts(which, weight):
    y = numpyro.sample("y", memoryless(jnp.log(JAX_TABLE[which]), length=3))
    numpyro.factor("reward", weight * (y == 2).sum())


def per_context(weights):
    """log E exp(weight·count of the last letter), three tokens."""
    last = np.asarray(JAX_TABLE)[:, 2]
    return 3 * np.log1p(last * np.expm1(weights))


def test_several_contexts_are_solved_by_listing_and_refused_by_the_others():
    which, weights = jnp.arange(2), jnp.array([1.0, 0.5])
    answer = exact.solve(numpyro_contexts, which, weights)
    assert answer.engine == "sequences"
    np.testing.assert_allclose(np.asarray(answer.log_z), per_context(weights), rtol=1e-10)
    assert answer.kl_to_prior.shape == answer.entropy.shape == (2,)
    assert answer.law.shape == (27, 2)
    np.testing.assert_allclose(np.exp(np.asarray(answer.law)).sum(0), 1.0)
    for engine in ("types", "letters", "messages"):
        with pytest.raises(ValueError, match="one context at a time"):
            BY[engine](numpyro_contexts, which, weights)


def test_several_contexts_of_independent_tokens_in_torch():
    table = t64(JAX_TABLE)

    def prior(which):
        return pyro_dist.Categorical(table[which][..., None, :].expand(-1, 3, -1)).to_event(1)

    target = Target(prior, lambda y, which: 1.0 * (y == 2).sum(-1))
    answer = exact.solve(target, torch.arange(2))
    np.testing.assert_allclose(answer.log_z.numpy(), per_context(np.ones(2)), rtol=1e-10)


def test_one_outcome_with_contexts_lists_the_support():
    table = t64(JAX_TABLE)
    target = Target(lambda x: pyro_dist.Categorical(table[x]), lambda y, x: 1.0 * (y == x))
    answer = exact.solve(target, torch.tensor([0, 1]))
    want = [math.log(0.5 * math.e + 0.5), math.log(0.1 * math.e + 0.9)]
    np.testing.assert_allclose(answer.log_z.numpy(), want, rtol=1e-10)
    assert answer.reason == "3 outcomes listed: the prior lists its support"


@pytest.mark.parametrize("engine", BY)
def test_torch_gradients_are_finite_differences(engine):
    reward = letters if engine != "types" else lambda y: (y == 2).sum(-1).double() ** 2

    def numbers(logits, beta):
        prior = pyro_dist.Categorical(logits=logits).expand([4]).to_event(1)
        answer = BY[engine](Target(prior, lambda y: reward(y) / beta))
        return answer.log_z, answer.entropy + answer.kl_to_prior

    point = (t64(np.log(P)).requires_grad_(), t64(0.7).requires_grad_())
    for which in range(2):
        grads = torch.autograd.grad(numbers(*point)[which], point)
        for i in range(4):
            sides = []
            for h in (1e-5, -1e-5):
                moved = [x.detach().clone() for x in point]
                (moved[0] if i < 3 else moved[1])[i if i < 3 else ()] += h
                sides.append(float(numbers(*moved)[which]))
            want = (sides[0] - sides[1]) / 2e-5
            got = float(grads[0][i] if i < 3 else grads[1])
            assert got == pytest.approx(want, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize(
    "engine", [pytest.param(e, marks=pytest.mark.slow) if e == "messages" else e for e in BY]
)
def test_jax_gradients_are_those_of_the_closed_form(engine):
    def log_z(logits, table):
        prior = memoryless(logits, length=4)
        return BY[engine](Target(prior, lambda y: table[y].sum(-1))).log_z

    point = (jnp.log(jnp.asarray(P)), jnp.asarray(LETTERS))
    value, grads = jax.value_and_grad(log_z, argnums=(0, 1))(*point)
    weight = P * np.exp(LETTERS)
    law = weight / weight.sum()
    assert float(value) == pytest.approx(4 * math.log(weight.sum()), rel=1e-12)
    np.testing.assert_allclose(np.asarray(grads[0]), 4 * (law - P), atol=1e-10)
    np.testing.assert_allclose(np.asarray(grads[1]), 4 * law, atol=1e-10)


def test_inside_jit_the_form_of_a_potential_cannot_be_checked():
    def log_z(table):
        prior = memoryless(jnp.log(jnp.asarray(P)), length=40)
        return exact.by_letters(Target(prior, lambda y: table[y].sum(-1))).log_z

    with pytest.raises(ValueError, match=r"inside jax\.jit"):
        jax.jit(log_z)(jnp.asarray(LETTERS))


def levels(y, p, reward):
    """Levels and their probabilities, given that the reward is finite."""
    kept = np.isfinite(reward)
    found, index = np.unique(np.round(reward[kept], 9), return_inverse=True)
    return found, np.bincount(index, p[kept]) / p[kept].sum()


BETA = 0.7
ADDITIVE = Target(iid(), lambda y: letters(y) / BETA)
LAWS = {
    "additive": ADDITIVE,
    "additive, with a constant": Target(iid(), lambda y: (letters(y) - 3.0) / BETA),
    "with ties": Target(iid(), lambda y: t64([0.1, 0.2, 0.3])[y].sum(-1) / BETA),
    "not additive": Target(iid(), lambda y: long_range(y).double() / BETA),
    "a letter forbidden": condition(ADDITIVE, lambda y: (y != 0).all(-1)),
    "a sequence forbidden": condition(ADDITIVE, lambda y: (y != 0).any(-1)),
    "an automaton": product(ADDITIVE, Automaton([[0, 1, 0], [1, 1, 1]], [False, True])),
    "one token": Target(iid(1), lambda y: letters(y) / BETA),
    "the first token weighs more": Target(iid(), lambda y: (letters(y) + y[..., 0]) / BETA),
}


@pytest.mark.parametrize("name", LAWS)
def test_the_law_of_a_targets_reward_is_that_of_its_sequences(name):
    target = LAWS[name]
    length = 1 if name == "one token" else 4
    y = torch.cartesian_prod(*[torch.arange(3)] * length).reshape(-1, length)
    p = P[y.numpy()].prod(1)
    found, mass = levels(y, p, BETA * target.log_potential(y).double().numpy())
    law = potential_law(target, scale=BETA)
    np.testing.assert_allclose(law.rewards, found, atol=1e-9)
    np.testing.assert_allclose(np.exp(law.log_prob), mass, rtol=1e-9)
    assert law.length == length
    assert law.exact


def test_the_law_of_a_long_additive_target_and_what_is_too_long():
    target = Target(iid(500), lambda y: (y == 2).sum(-1) / 0.5)
    law = potential_law(target, scale=0.5)
    assert law.rewards.tolist() == list(range(501))
    want = [math.comb(500, k) * 0.2**k * 0.8 ** (500 - k) for k in (0, 100, 250)]
    np.testing.assert_allclose(np.exp(law.log_prob[[0, 100, 250]]), want, rtol=1e-9)
    with pytest.raises(ValueError, match=r"too many to list; give its terms to exact\.reward_law"):
        potential_law(Target(iid(60), long_range))


def test_the_law_of_several_contexts_is_refused():
    with pytest.raises(ValueError, match="one context"):
        potential_law(numpyro_contexts, jnp.arange(2), jnp.ones(2))


def test_the_law_of_a_single_outcome_and_of_a_language_models_target():
    target = Target(pyro_dist.Categorical(t64(P)), lambda y: t64([2.0, 1.0, 2.0])[y])
    law = potential_law(target)
    assert law.rewards.tolist() == [1.0, 2.0]
    np.testing.assert_allclose(np.exp(law.log_prob), [0.3, 0.7])
    ending = memoryless(jnp.log(jnp.asarray(P)), length=2, eos=0)
    law = potential_law(tilt(ending, lambda y: 1.0 * (y == 1).sum(-1), 0.5), scale=0.5)
    assert law.rewards.tolist() == [0.0, 1.0, 2.0]
    # 0, 20, 22 have no 1; 10, 12 and 21 one.
    want = [0.5 + 0.2 * 0.5 + 0.2**2, 0.3 * 0.5 + 2 * 0.3 * 0.2, 0.3**2]
    np.testing.assert_allclose(np.exp(law.log_prob), want, rtol=1e-7)
