"""User code that edits in place what it is given spoils nothing but its own copy."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import infer_align as ia
from infer_align import Space, Target, exact, samplers, targets
from infer_align.samplers import importance
from infer_align.torch import source, target
from tests.sources import TableSource

PROBS = [0.5, 0.3, 0.2]
REWARD = np.array([0.0, 1.0, 2.0])


class Law:
    """A NumPy distribution over 0, 1, 2."""

    batch_shape = ()

    def log_prob(self, y):
        return np.log(PROBS)[y]


def spoiling(y, *contexts):
    """2 counts as 0, by writing into the array."""
    y[y == 2] = 0
    return 1.0 * y


def same(x, y):
    return np.allclose(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
def test_a_potential_gets_a_copy(xp):
    prior = Law() if xp is np else dist.Categorical(torch.tensor(PROBS))
    y = xp.asarray([2, 1, 0, 2])
    for goal in (
        Target(prior, spoiling),
        ia.tilt(prior, spoiling, beta=1.0),
        ia.product(prior, spoiling, lambda y: 0.0 * y),
        ia.condition(ia.tilt(prior, spoiling, beta=1.0), lambda y: y >= 0),
    ):
        assert same(goal.log_density(y), np.log(PROBS)[[2, 1, 0, 2]] + [0, 1, 0, 0])
        assert y.tolist() == [2, 1, 0, 2]


@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
def test_the_second_reward_sees_what_the_first_saw(xp):
    y = xp.asarray([2, 1, 0])
    plain = lambda y: 1.0 * y
    assert targets.mean_reward(spoiling, plain)(y).tolist() == [1.0, 1.0, 0.0]
    assert targets.worst_case(spoiling, plain)(y).tolist() == [0.0, 1.0, 0.0]
    weighted = targets.uncertainty_weighted(spoiling, plain, weight=1.0)
    assert weighted(y).tolist() == [0.0, 1.0, 0.0]
    prior = Law() if xp is np else dist.Categorical(torch.tensor(PROBS))
    goal = ia.tilt(ia.tilt(prior, spoiling, beta=1.0), plain, beta=1.0)
    assert same(goal.log_potential(y), [2.0, 2.0, 0.0])
    constrained = ia.moment_match(
        prior, {"a": (spoiling, 0.0), "b": (plain, 0.0)}, multipliers={"a": 1.0, "b": 1.0}
    )
    assert same(constrained.log_potential(y), [2.0, 2.0, 0.0])
    assert y.tolist() == [2, 1, 0]


def test_a_space_keeps_its_outcomes():
    space = Space(torch.arange(3))
    goal = Target(dist.Categorical(torch.tensor(PROBS, dtype=torch.float64)), spoiling)
    want = math.log(0.5 + 0.3 * math.e + 0.2)
    assert [float(space.log_z(goal)) for _ in range(2)] == pytest.approx([want] * 2)
    assert space.outcomes.tolist() == [0, 1, 2]
    cdf = exact.reward_cdf(goal.prior, spoiling)
    assert cdf.table.rewards.flatten().tolist() == [0.0, 0.0, 1.0]


def test_counts_of_letters_are_not_the_rewards():
    """Counts (a, b) of two letters in 3: a reward that empties them leaves the law right."""

    def spoil(counts):
        value = 1.0 * counts[:, 1]
        counts[:] = 0
        return value

    law = exact.reward_law_of_counts([0.25, 0.75], spoil, 3)
    np.testing.assert_allclose(np.exp(law.log_prob), [1 / 64, 9 / 64, 27 / 64, 27 / 64])


def test_best_of_n_keeps_what_was_drawn():
    """Of 2 (which the reward counts as 0) and 0 the best is either: a drawn 2 stays a 2."""
    q = np.log([0.5, 0.5])
    source = TableSource(np.array([2, 0]), q, q)
    sample = samplers.best_of_n(source, spoiling, 2, 400)
    share = float(np.mean(np.asarray(sample.outcomes) == 2))
    assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(400)


def test_an_importance_sample_keeps_what_was_drawn():
    prior = dist.Categorical(torch.tensor(PROBS, dtype=torch.float64))

    def program():
        y = pyro.sample("y", prior)
        y[y == 2] = 0
        pyro.factor("reward", 1.0 * y)

    sample = importance(source(program), 2000)
    counts = np.bincount(np.asarray(sample.outcomes), minlength=3) / 2000
    assert abs(counts[2] - 0.2) < 5 * math.sqrt(0.2 * 0.8 / 2000)


def test_a_pyro_program_spoils_only_its_own_run():
    prior = dist.Categorical(torch.tensor(PROBS, dtype=torch.float64))

    def program():
        y = pyro.sample("y", prior)
        y[y == 2] = 0
        pyro.factor("reward", 1.0 * y)

    goal, y = target(program), torch.tensor([2, 1, 0])
    want = np.log(PROBS)[[2, 1, 0]] + [0, 1, 0]
    for _ in range(2):  # the first also looks at single outcomes, views of these
        assert same(goal.log_density(y), want)
        assert y.tolist() == [2, 1, 0]
    assert same(goal.log_potential(y), [0, 1, 0])
    drawn = goal.given().sample((2000,))
    assert abs(float((drawn == 2).double().mean()) - 0.2) < 5 * math.sqrt(0.2 * 0.8 / 2000)


def test_a_pyro_program_of_two_sites_spoils_only_its_own_run():
    def program():
        a = pyro.sample("a", dist.Categorical(torch.tensor(PROBS)))
        b = pyro.sample("b", dist.Categorical(torch.tensor([0.5, 0.5])).expand(a.shape))
        a[:], b[:] = 0, 0

    goal = target(program)
    y = {"a": torch.tensor([2, 0]), "b": torch.tensor([1, 1])}
    assert same(goal.log_density(y), np.log([0.2 * 0.5, 0.5 * 0.5]))
    assert {k: v.tolist() for k, v in y.items()} == {"a": [2, 0], "b": [1, 1]}
    drawn = goal.given().sample((200,))
    assert {int(drawn["a"].max()), int(drawn["b"].max())} == {2, 1}


@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
def test_a_twist_gets_a_copy(xp):
    prefix = xp.asarray([[[2, 1]]])

    def spoil(tokens):
        tokens[:] = 0
        return 0.0 * tokens.sum(-1)

    samplers.prefix_twist(spoil).log_psi(prefix)
    samplers.next_twist(spoil).next_log_psi(prefix)
    assert prefix.tolist() == [[[2, 1]]]
