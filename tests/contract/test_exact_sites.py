"""Programs of several latent sites, solved exactly, against sums written as plain loops."""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pyro
import pyro.distributions as pyro_dist
import pytest
import torch

from infer_align import exact, tilt
from infer_align.jax import target as jax_target
from infer_align.torch import target as torch_target

STYLE = 0.3
LETTERS = np.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
MOOD = np.array([[0.1, 0.6, 0.3], [0.5, 0.25, 0.25]])
WORDS = np.random.default_rng(0).dirichlet(np.ones(2), (2, 3))  # by style and mood
TOPICS = np.array([[0.3, 0.7], [0.8, 0.2]])  # style by topic
BY_TOPIC = np.random.default_rng(1).dirichlet(np.ones(3), (2, 2))  # letters by topic and style
TOPIC, WEIGHT = np.array([1, 0, 1]), np.array([0.5, -1.0, 2.0])


def t64(x):
    return torch.tensor(np.asarray(x), dtype=torch.float64)


class Row(NamedTuple):
    """An outcome by site, its probability under the prior, and its log-potential."""

    outcome: dict
    prior: float
    potential: float


def words(size, length):
    return [list(word) for word in itertools.product(range(size), repeat=length)]


def numpyro_style():
    style = numpyro.sample("style", numpyro_dist.Bernoulli(STYLE))
    law = numpyro_dist.Categorical(jnp.array(LETTERS)[style])
    y = numpyro.sample("y", law.expand([4]).to_event(1))
    numpyro.factor("reward", 0.5 * style * (y == 2).sum() + 0.1 * y[0] - 0.2 * style)


def pyro_style():
    style = pyro.sample("style", pyro_dist.Bernoulli(t64(STYLE)))
    law = pyro_dist.Categorical(t64(LETTERS)[style.long()].unsqueeze(-2))
    y = pyro.sample("y", law.expand([*style.shape, 4]).to_event(1))
    pyro.factor("reward", 0.5 * style * (y == 2).sum(-1) + 0.1 * y[..., 0].double())
    pyro.factor("of the style alone", -0.2 * style)


def rows_style():
    for s, y in itertools.product(range(2), words(3, 4)):
        prior = (STYLE if s else 1 - STYLE) * math.prod(LETTERS[s][c] for c in y)
        yield Row({"style": s, "y": y}, prior, 0.5 * s * y.count(2) + 0.1 * y[0] - 0.2 * s)


def numpyro_support():
    style = numpyro.sample("style", numpyro_dist.Bernoulli(STYLE))
    probs = LETTERS[0] if style == 0 else WORDS[0, 0]  # of three letters, or of two
    y = numpyro.sample("y", numpyro_dist.Categorical(jnp.array(probs)).expand([4]).to_event(1))
    numpyro.factor("reward", (y == 1).sum() ** (1.0 if style else 0.5))


def pyro_support():
    style = pyro.sample("style", pyro_dist.Bernoulli(t64(STYLE)))
    probs = LETTERS[0] if style == 0 else WORDS[0, 0]
    y = pyro.sample("y", pyro_dist.Categorical(t64(probs)).expand([4]).to_event(1))
    pyro.factor("reward", t64((y == 1).sum(-1)) ** (1.0 if style else 0.5))


def rows_support():
    for s in range(2):
        law = LETTERS[0] if s == 0 else WORDS[0, 0]
        for y in words(len(law), 4):
            prior = (STYLE if s else 1 - STYLE) * math.prod(law[c] for c in y)
            yield Row({"style": s, "y": y}, prior, y.count(1) ** (1.0 if s else 0.5))


def numpyro_three():
    style = numpyro.sample("style", numpyro_dist.Bernoulli(STYLE))
    mood = numpyro.sample("mood", numpyro_dist.Categorical(jnp.array(MOOD)[style]))
    law = numpyro_dist.Categorical(jnp.array(WORDS)[style, mood])
    y = numpyro.sample("y", law.expand([2]).to_event(1))
    seen = numpyro_dist.Poisson(1.0 + mood + y.sum())
    numpyro.sample("seen", seen, obs=jnp.array(3))
    numpyro.factor("agree", jnp.where(y[0] == (mood > 0), 0.0, -jnp.inf))


def pyro_three():
    style = pyro.sample("style", pyro_dist.Bernoulli(t64(STYLE))).long()
    mood = pyro.sample("mood", pyro_dist.Categorical(t64(MOOD)[style]))
    law = pyro_dist.Categorical(t64(WORDS)[style, mood].unsqueeze(-2))
    y = pyro.sample("y", law.expand([*mood.shape, 2]).to_event(1))
    seen = pyro_dist.Poisson(1.0 + mood + y.sum(-1).double())
    pyro.sample("seen", seen, obs=t64(3.0))
    pyro.factor("agree", torch.where(y[..., 0] == (mood > 0), t64(0.0), t64(-math.inf)))


def rows_three():
    for s, m, y in itertools.product(range(2), range(3), words(2, 2)):
        prior = (STYLE if s else 1 - STYLE) * MOOD[s, m] * math.prod(WORDS[s, m, c] for c in y)
        rate = 1.0 + m + sum(y)
        seen = 3 * math.log(rate) - rate - math.log(6)
        potential = seen if y[0] == (m > 0) else -math.inf
        yield Row({"style": s, "mood": m, "y": y}, prior, potential)


def numpyro_verdict():
    """The sequence comes first, and an independent coin between it and what judges it."""
    law = numpyro_dist.Categorical(jnp.array(LETTERS[0]))
    y = numpyro.sample("y", law.expand([2]).to_event(1))
    coin = numpyro.sample("coin", numpyro_dist.Bernoulli(jnp.array(0.4)))
    good = numpyro.sample("good", numpyro_dist.Bernoulli(probs=(1.0 + y.sum()) / 6))
    numpyro.factor("reward", 1.0 * good * coin - 0.3 * y[1])


def pyro_verdict():
    y = pyro.sample("y", pyro_dist.Categorical(t64(LETTERS[0])).expand([2]).to_event(1))
    coin = pyro.sample("coin", pyro_dist.Bernoulli(t64(0.4)))
    good = pyro.sample("good", pyro_dist.Bernoulli((1.0 + y.sum(-1).double()) / 6))
    pyro.factor("reward", 1.0 * good * coin - 0.3 * y[..., 1].double())


def rows_verdict():
    for y, c, g in itertools.product(words(3, 2), range(2), range(2)):
        rate = (1 + sum(y)) / 6
        prior = LETTERS[0][y[0]] * LETTERS[0][y[1]] * (0.4 if c else 0.6)
        prior *= rate if g else 1 - rate
        yield Row({"y": y, "coin": c, "good": g}, prior, g * c - 0.3 * y[1])


def numpyro_topics(topic, weight):
    style = numpyro.sample("style", numpyro_dist.Categorical(jnp.array(TOPICS)[topic]))
    law = numpyro_dist.Categorical(jnp.array(BY_TOPIC)[topic, style])
    y = numpyro.sample("y", law.expand([2]).to_event(1))
    numpyro.factor("reward", weight * (y == style).sum())


def pyro_topics(topic, weight):
    style = pyro.sample("style", pyro_dist.Categorical(t64(TOPICS)[topic]))
    law = pyro_dist.Categorical(t64(BY_TOPIC)[topic, style].unsqueeze(-2))
    y = pyro.sample("y", law.expand([*style.shape, 2]).to_event(1))
    pyro.factor("reward", weight * (y == style.unsqueeze(-1)).sum(-1))


def rows_topics(topic, weight):
    for s, y in itertools.product(range(2), words(3, 2)):
        prior = TOPICS[topic, s] * math.prod(BY_TOPIC[topic, s, c] for c in y)
        yield Row({"style": s, "y": y}, prior, weight * y.count(s))


CASES = {
    "style": (numpyro_style, pyro_style, rows_style),
    "support": (numpyro_support, pyro_support, rows_support),
    "three": (numpyro_three, pyro_three, rows_three),
    "verdict": (numpyro_verdict, pyro_verdict, rows_verdict),
}


def truth(rows):
    """Log Z, entropy, expected potential, KL to the prior and the law, one outcome at a time."""
    rows = list(rows)
    assert abs(sum(row.prior for row in rows) - 1) < 1e-12
    z = sum(row.prior * math.exp(row.potential) for row in rows)
    law = [row.prior * math.exp(row.potential) / z for row in rows]
    entropy = potential = kl = 0.0
    for p, row in zip(law, rows, strict=True):
        if p > 0:
            entropy -= p * math.log(p)
            potential += p * row.potential
            kl += p * math.log(p / row.prior)
    return (math.log(z), entropy, potential, kl), law


def numbers(answer):
    found = answer.log_z, answer.entropy, answer.expected_log_potential, answer.kl_to_prior
    return [np.asarray(x) for x in found]


def listed(answer):
    return {name: np.asarray(x).astype(int).tolist() for name, x in answer.space.outcomes.items()}


def columns(rows):
    return {name: [row.outcome[name] for row in rows] for name in rows[0].outcome}


@pytest.mark.parametrize("library", [0, 1], ids=["numpyro", "pyro"])
@pytest.mark.parametrize("case", CASES)
def test_answers_are_sums_over_all_outcomes_of_all_sites(case, library):
    rows = list(CASES[case][2]())
    expected, law = truth(rows)
    answer = exact.solve(CASES[case][library])
    np.testing.assert_allclose(numbers(answer), expected, rtol=1e-10)
    assert (answer.engine, listed(answer)) == ("sites", columns(rows))
    np.testing.assert_allclose(np.exp(np.asarray(answer.law)), law, atol=1e-12)
    assert answer.reason == f"{len(rows)} outcomes listed of the sites {', '.join(rows[0].outcome)}"


@pytest.mark.parametrize("library", [0, 1], ids=["numpyro", "pyro"])
def test_contexts_are_on_trailing_axes(library):
    make = (jnp.asarray, torch.tensor)[library]
    program = (numpyro_topics, pyro_topics)[library]
    answer = exact.solve(program, make(TOPIC), make(WEIGHT))
    assert tuple(answer.law.shape) == (18, 3)
    space, marginal = answer.marginal("style")
    y = {name: np.asarray(x) for name, x in answer.space.outcomes.items()}
    for c in range(3):
        expected, law = truth(rows_topics(TOPIC[c], WEIGHT[c]))
        np.testing.assert_allclose([x[c] for x in numbers(answer)], expected, rtol=1e-10)
        np.testing.assert_allclose(np.exp(np.asarray(answer.law[:, c])), law, atol=1e-12)
        probability = np.exp(np.asarray(marginal))
        for i, style in enumerate(np.asarray(space.outcomes)):
            total = sum(p for p, s in zip(law, y["style"], strict=True) if s == style)
            assert abs(probability[i, c] - total) < 1e-12
    # Another outcome in every context.
    drawn = {"style": make([[0, 1, 1], [1, 0, 0]]), "y": make([[[0, 1], [2, 2], [1, 0]]] * 2)}
    got = np.asarray(answer.log_prob(drawn))
    for i, c in itertools.product(range(2), range(3)):
        one = [int(drawn["style"][i, c])], [drawn["y"][i, c].tolist()]
        at = int(answer.space.index({"style": np.array(one[0]), "y": np.array(one[1])})[0])
        assert got[i, c] == float(answer.law[at, c])


@pytest.mark.parametrize("library", [0, 1], ids=["numpyro", "pyro"])
def test_log_probabilities_and_marginals_of_dicts(library):
    answer = exact.solve(CASES["support"][library])
    rows = list(rows_support())
    _, law = truth(rows)
    make = (jnp.asarray, torch.tensor)[library]
    asked = [rows[90], rows[3], Row({"style": 1, "y": [0, 0, 2, 0]}, 0.0, 0.0)]
    y = {name: make(np.array(x)) for name, x in columns(asked).items()}
    got = np.asarray(answer.log_prob(y))
    np.testing.assert_allclose(got[:2], np.log([law[90], law[3]]), rtol=1e-10)
    assert got[2] == -math.inf  # style 1 has no third letter
    with pytest.raises(ValueError, match=r"1 of 3 outcomes are not in this space.*\[1, 0, 0, 2, 0"):
        answer.space.index({name: np.asarray(x) for name, x in y.items()})
    space, log_p = answer.marginal("y")
    assert len(space) == 81
    totals = [
        sum(p for p, row in zip(law, rows, strict=True) if row.outcome["y"] == word)
        for word in np.asarray(space.outcomes).tolist()
    ]
    np.testing.assert_allclose(np.exp(np.asarray(log_p)), totals, atol=1e-12)
    with pytest.raises(ValueError, match="sites are style, y; got 'mood'"):
        answer.marginal("mood")


def reward(y):
    return 0.25 * y["y"][:, 0] * y["style"]


@pytest.mark.parametrize("declare", [lambda: jax_target(numpyro_style),
                                     lambda: torch_target(pyro_style)])  # fmt: skip
def test_targets_and_their_tilts_take_dicts(declare):
    rows = [Row(o, q, r + 0.25 * o["y"][0] * o["style"] / 0.7) for o, q, r in rows_style()]
    answer = exact.solve(tilt(declare(), reward, beta=0.7))
    np.testing.assert_allclose(numbers(answer), truth(rows)[0], rtol=1e-10)
    density = declare().log_density(answer.space.outcomes)
    wanted = [math.log(row.prior) + row.potential for row in rows_style()]
    np.testing.assert_allclose(np.asarray(density), wanted, rtol=1e-10)


def test_answers_are_differentiable():
    def program(weight):
        style = numpyro.sample("style", numpyro_dist.Bernoulli(jax.nn.sigmoid(weight)))
        y = numpyro.sample("y", numpyro_dist.Categorical(jnp.array(LETTERS)[style]))
        numpyro.factor("reward", weight * y)

    def log_z(weight):
        target = jax_target(lambda: program(weight))
        return exact.solve(target).log_z

    step = 1e-5
    slope = (log_z(0.4 + step) - log_z(0.4 - step)) / (2 * step)
    assert abs(float(jax.grad(log_z)(0.4)) - float(slope)) < 1e-8
    weight = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def torch_program():
        style = pyro.sample("style", pyro_dist.Bernoulli(torch.sigmoid(weight)))
        y = pyro.sample("y", pyro_dist.Categorical(t64(LETTERS)[style.long()]))
        pyro.factor("reward", weight * y)

    exact.solve(torch_program).log_z.backward()
    assert weight.grad is not None
    assert abs(float(weight.grad) - float(slope)) < 1e-8
