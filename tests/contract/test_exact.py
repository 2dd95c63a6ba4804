"""The oracle itself: against hand-computed sums, on three array libraries."""

import math

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as numpyro_dist
import pyro.distributions as pyro_dist
import pytest
import torch

from infer_align import divergences
from infer_align.spaces import Space
from infer_align.targets import Target, condition, tilt

PRIOR = np.array([0.05, 0.1, 0.15, 0.2, 0.2, 0.3])
REWARD = np.array([2.0, -1.0, 0.5, 0.0, 1.5, -2.0])
LIBRARIES = [
    pytest.param(np, id="numpy"),
    pytest.param(jnp, id="jax"),
    pytest.param(torch, id="torch"),
]


def categorical(xp, probs):
    """Categorical distribution of the library, or NumPyro's for NumPy."""
    if xp is torch:
        return pyro_dist.Categorical(probs=torch.asarray(probs, dtype=torch.float64))
    return numpyro_dist.Categorical(probs=jnp.asarray(probs))


@pytest.mark.parametrize("xp", LIBRARIES)
def test_sums_are_those_of_a_hand_computed_target(xp):
    log_density = xp.asarray(np.log(PRIOR) + REWARD)
    space = Space(xp.asarray(np.arange(6)))
    density = PRIOR * np.exp(REWARD)
    p = density / density.sum()
    assert float(space.log_z(log_density)) == pytest.approx(math.log(density.sum()), rel=1e-6)
    log_p = space.log_target(log_density)
    np.testing.assert_allclose(np.exp(np.asarray(log_p)), p, rtol=1e-5)
    mean = space.expectation(xp.asarray(REWARD), log_p)
    assert float(mean) == pytest.approx((p * REWARD).sum(), rel=1e-5)
    kl = space.divergence(divergences.reverse_kl, xp.asarray(np.log(PRIOR)), log_p)
    assert float(kl) == pytest.approx((PRIOR * np.log(PRIOR / p)).sum(), rel=1e-5)


@pytest.mark.parametrize("xp", [jnp, torch], ids=["numpyro", "pyro"])
def test_solve_gives_the_tilted_law_and_its_costs(xp):
    space = Space(xp.asarray(np.arange(6)))
    reward = xp.asarray(REWARD)
    beta = 0.5
    solution = space.solve(tilt(categorical(xp, PRIOR), lambda y: reward[y], beta))
    density = PRIOR * np.exp(REWARD / beta)
    p = density / density.sum()
    np.testing.assert_allclose(np.exp(np.asarray(solution.log_prob)), p, rtol=1e-5)
    assert float(solution.log_z) == pytest.approx(math.log(density.sum()), rel=1e-5)
    assert float(solution.entropy) == pytest.approx(-(p * np.log(p)).sum(), rel=1e-5)
    expected = (p * REWARD / beta).sum()
    assert float(solution.expected_log_potential) == pytest.approx(expected, rel=1e-5)
    kl = (p * np.log(p / PRIOR)).sum()
    assert float(solution.kl_to_prior) == pytest.approx(kl, rel=1e-4)


@pytest.mark.parametrize("xp", [jnp, torch], ids=["numpyro", "pyro"])
def test_hard_constraints_leave_no_nan(xp):
    space = Space(xp.asarray(np.arange(6)))
    solution = space.solve(condition(categorical(xp, PRIOR), lambda y: y < 2))
    assert float(solution.log_z) == pytest.approx(math.log(0.15), rel=1e-5)
    assert float(solution.kl_to_prior) == pytest.approx(-math.log(0.15), rel=1e-5)
    assert float(solution.expected_log_potential) == 0.0
    assert all(np.isfinite(np.asarray(x)).all() for x in solution if x is not solution.log_prob)
    np.testing.assert_array_equal(np.exp(np.asarray(solution.log_prob))[2:], 0.0)


def test_a_target_that_accepts_nothing_is_an_error_that_says_so():
    space = Space(torch.arange(6))
    nothing = condition(categorical(torch, PRIOR), lambda y: y > 9)
    assert float(space.log_z(nothing)) == -math.inf
    with pytest.raises(ValueError, match="accepts none of the 6 outcomes in 1 of 1 contexts"):
        space.solve(nothing)


def test_contexts_are_trailing_axes_and_equal_a_loop():
    table = torch.tensor(np.random.default_rng(0).dirichlet(np.ones(6), size=3))
    reward = torch.tensor(np.random.default_rng(1).normal(size=(6, 3)))
    space = Space(torch.arange(6))
    target = Target(
        lambda rows: pyro_dist.Categorical(probs=table[rows]),
        lambda y, rows: reward[y, rows.expand(y.shape)],
    )
    together = space.solve(target, torch.arange(3))
    assert tuple(together.log_prob.shape) == (6, 3)
    assert tuple(together.log_z.shape) == (3,)
    for c in range(3):
        alone = space.solve(target, torch.tensor([c]))
        for many, one in zip(together, alone, strict=True):
            torch.testing.assert_close(many[..., c], one[..., 0])


def test_log_prob_of_a_batch_of_distributions_and_of_events():
    space = Space.product(2, 3, xp=torch)
    probs = torch.tensor([[0.2, 0.8], [0.5, 0.5]], dtype=torch.float64)
    uniform = torch.full((2,), 1 / 3, dtype=torch.float64)

    class Pair(pyro_dist.TorchDistribution):
        arg_constraints = {}  # noqa: RUF012
        batch_shape, event_shape = torch.Size([2]), torch.Size([2])

        def __init__(self):
            pass

        def log_prob(self, value):
            first = probs[torch.arange(2), value[..., 0]]
            return (first * uniform).log()

    log_prob = space.log_prob(Pair())
    assert tuple(log_prob.shape) == (6, 2)
    torch.testing.assert_close(log_prob[:, 0].exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(log_prob[4, 0].exp(), torch.tensor(0.8 / 3, dtype=torch.float64))


def test_a_space_that_misses_an_outcome_is_refused_unless_told():
    coin = categorical(torch, [0.25, 0.75])
    space = Space(torch.arange(1))
    with pytest.raises(ValueError, match=r"miss 1 by 0\.75"):
        space.log_prob(coin)
    assert space.log_prob(coin, tolerance=math.inf).exp().tolist() == [0.25]
    half = np.log([0.5, 0.4])
    with pytest.raises(ValueError, match="probabilities of log_policy"):
        Space(np.arange(2)).divergence(divergences.forward_kl, half, half)


@pytest.mark.parametrize(
    ("vocabulary_size", "length", "eos", "count"),
    [(5, 4, 0, 341), (5, 4, None, 625), (3, 3, (0, 2), 2 + 2 + 3), (2, 1, 1, 2), (3, 2, (), 9)],
)
def test_sequences_end_at_their_first_eos(vocabulary_size, length, eos, count):
    space = Space.sequences(vocabulary_size, length, eos=eos, pad=-1)
    assert len(space) == count
    ends = () if eos is None else np.atleast_1d(eos)
    for row in space.outcomes:
        positions = np.flatnonzero(np.isin(row, ends))
        after = row[positions[0] + 1 :] if len(positions) else row[:0]
        before = row[: positions[0] + 1] if len(positions) else row
        assert (after == -1).all()
        assert (before >= 0).all()


def test_padding_with_eos_or_with_a_token_keeps_every_outcome_distinct():
    for pad in (0, 3):
        assert len(Space.sequences(5, 4, eos=0, pad=pad)) == 341


def test_memoryless_sequences_with_eos_have_total_probability_one():
    space = Space.sequences(4, 3, eos=(1, 2), pad=-7)
    probs = np.array([0.4, 0.1, 0.2, 0.3, 1.0])  # the last entry, index −1, prices padding
    log_prob = np.log(probs[np.where(space.outcomes == -7, -1, space.outcomes)]).sum(-1)
    assert float(np.exp(log_prob).sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("xp", LIBRARIES)
def test_index_finds_sampled_outcomes_of_any_leading_shape(xp):
    space = Space.sequences(3, 3, eos=0, pad=0, xp=xp)
    chosen = np.random.default_rng(0).integers(len(space), size=(4, 2))
    sampled = xp.asarray(np.asarray(space.outcomes)[chosen])
    np.testing.assert_array_equal(space.index(sampled), chosen)
    scalars = Space(xp.asarray(np.array([5, 3, 9])))
    np.testing.assert_array_equal(scalars.index(xp.asarray(np.array([[9], [5]]))), [[2], [0]])


def test_index_of_nothing_is_empty_and_of_a_stranger_an_error():
    space = Space.product(2, 2)
    assert space.index(np.zeros((0, 2), dtype=int)).shape == (0,)
    with pytest.raises(ValueError, match=r"1 of 2 outcomes are not in this space.*\[0, 7\]"):
        space.index(np.array([[0, 1], [0, 7]]))
    with pytest.raises(ValueError, match="event shape"):
        space.index(np.array([[0, 1, 1]]))


def test_outcomes_are_listed_once():
    with pytest.raises(ValueError, match=r"\[2\] is listed 2 times"):
        Space(np.array([1, 2, 2]))
    with pytest.raises(ValueError, match="at least one"):
        Space(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="outside the vocabulary"):
        Space.sequences(5, 4, eos=5)
    with pytest.raises(ValueError, match="length of at least 1"):
        Space.sequences(5, 0)


def test_vectors_of_another_length_are_refused():
    with pytest.raises(ValueError, match="must list the 6 outcomes"):
        Space(np.arange(6)).log_z(np.zeros(5))


@pytest.mark.parametrize("xp", [jnp, torch], ids=["jax", "torch"])
def test_exact_divergence_is_differentiable_through_log_z(xp):
    log_density = np.log(PRIOR) + np.where(REWARD < -1.5, -np.inf, REWARD)
    space = Space(xp.asarray(np.arange(6)))
    logits = np.linspace(-1.0, 1.0, 6)

    def loss(x, namespace):
        log_policy = x - namespace.logsumexp(x, 0)
        log_p = space.log_target(xp.asarray(log_density))
        return divergences.jensen_shannon(log_policy, log_p)

    if xp is torch:
        leaf = torch.tensor(logits, requires_grad=True)
        loss(leaf, torch).backward()
        gradient = leaf.grad.numpy()
    else:
        import jax

        gradient = np.asarray(jax.grad(lambda x: loss(x, jax.nn))(jnp.asarray(logits)))
    step = 1e-3
    numeric = []
    for i in range(6):
        values = []
        for sign in (1, -1):
            x = logits.copy()
            x[i] += sign * step
            policy = x - np.log(np.exp(x).sum())
            log_p = Space(np.arange(6)).log_target(log_density)
            values.append(float(divergences.jensen_shannon(policy, log_p)))
        numeric.append((values[0] - values[1]) / (2 * step))
    np.testing.assert_allclose(gradient, numeric, rtol=1e-3, atol=1e-6)
