"""Sequential Monte Carlo on laws that are listed: unbiased, properly weighted, its spread known."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer_align.samplers import (
    conditional_importance,
    conditional_smc,
    multinomial,
    next_twist,
    prefix_twist,
    residual,
    smc,
    stratified,
    systematic,
)
from tests.sources import INF, ExactTwist, abab, chi_square_p, log, markov, memoryless

SCHEMES = [multinomial, stratified, systematic, residual]
INITIAL = np.array([0.5, 0.3, 0.2])
TRANSITION = np.array([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.35, 0.25, 0.4]])


def potential(y):
    ones = (y == 1).sum(-1)
    return np.where(ones >= 1, 0.8 * (y == 0).sum(-1) - 0.4 * ones, -INF)


def soft(y):
    return 0.8 * (y == 0).sum(-1) - 0.4 * (y == 1).sum(-1)


def replicates(number, *, eos=(), seed=0, phi=potential):
    """The same target in each of many contexts: every context is a replication."""
    initial = np.broadcast_to(INITIAL, (number, 3))
    transition = np.broadcast_to(TRANSITION, (number, 3, 3))
    return markov(initial, transition, 4, phi, eos=eos, pad=2, seed=seed)


def partial(prefix):
    """A rough guess: what has been seen, and a bonus for the letter that is required."""
    return 0.8 * (prefix == 0).sum(-1) + np.where((prefix == 1).any(-1), 0.5, -0.5)


def ahead(prefix):
    """The same of each next token."""
    letters = np.arange(3)
    seen = (prefix == 1).any(-1)[..., None] | (letters == 1)
    return 0.8 * ((prefix == 0).sum(-1)[..., None] + (letters == 0)) + np.where(seen, 0.5, -0.5)


TWISTS = {
    "none": lambda source: None,
    "prefix": lambda source: prefix_twist(partial),
    "next": lambda source: next_twist(ahead),
    "exact": ExactTwist,
}


def within(values, truth, *, sigmas=5.0):
    """Whether the mean of independent values is the truth, as far as their spread tells."""
    error = np.std(values, axis=0, ddof=1) / math.sqrt(len(values))
    return np.abs(values.mean(axis=0) - truth) <= sigmas * error + 1e-12


@pytest.mark.parametrize("eos", [(), (2,)])
@pytest.mark.parametrize("twist", TWISTS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_mean_of_z_and_of_each_weighted_outcome_is_the_targets(scheme, twist, eos):
    source = replicates(800, eos=eos, seed=SCHEMES.index(scheme))
    n = 6
    sample = smc(source, n, twist=TWISTS[twist](source), scheme=scheme, ess_threshold=0.8)
    assert within(np.exp(sample.log_z), np.exp(source.log_z[0])).all()
    index, weights = source.index(sample.outcomes), np.exp(sample.log_weights)
    mass = np.zeros((800, len(source.outcomes)))
    for i in range(n):
        np.add.at(mass, (np.arange(800), index[i]), weights[i] / n)
    often = mass.astype(bool).sum(axis=0) >= 30  # else its spread is not known
    assert within(mass, np.exp(source.log_p[:, 0]))[often].all()
    assert often.sum() > 10


@pytest.mark.parametrize("threshold", [0, 0.5, 1])
@pytest.mark.parametrize("twist", ["prefix", "next"])
def test_any_threshold_is_unbiased(twist, threshold):
    source = replicates(1500, seed=3)
    sample = smc(source, 5, twist=TWISTS[twist](source), ess_threshold=threshold)
    assert within(np.exp(sample.log_z), np.exp(source.log_z[0])).all()


class Grid(np.random.Generator):
    """A generator whose uniforms run through the midpoints of quarters, in every combination."""

    def __init__(self, uniforms):
        super().__init__(np.random.PCG64(0))
        self.columns = np.array(list(itertools.product((np.arange(4) + 0.5) / 4, repeat=uniforms)))
        self.used = 0

    def random(self, shape):
        rows = shape[0]
        out = self.columns[:, self.used : self.used + rows].T
        self.used += rows
        assert out.shape == shape
        return out


def quarters(seed=0):
    """Two tokens, two positions; every probability that a filter of two meets is in quarters."""
    contexts = 4**6
    initial = np.broadcast_to([0.25, 0.75], (contexts, 2))
    transition = np.broadcast_to([[0.5, 0.5], [0.25, 0.75]], (contexts, 2, 2))
    source = markov(initial, transition, 2, lambda y: log(1 + 2 * y[:, 0] + y[:, 1] * y[:, 0]))
    source.rng = Grid(6)
    return source


ODD = prefix_twist(lambda prefix: log(1.0 + 2.0 * prefix[..., 0]))
"""ψ_1 of 1 or 3: two particles are resampled with probabilities in quarters."""


def test_every_random_choice_of_a_small_filter_averages_to_z():
    source = quarters()
    sample = smc(source, 2, twist=ODD, scheme=multinomial, ess_threshold=1)
    assert source.rng.used == 6
    assert np.exp(sample.log_z).mean() == pytest.approx(np.exp(source.log_z[0]), rel=1e-12)


def test_every_random_choice_of_a_conditional_filter_averages_to_one_over_z():
    source, total = quarters(), 0.0
    for y, p in zip(source.outcomes, source.p[:, 0], strict=True):
        source.rng = Grid(6)
        given = np.broadcast_to(y, (1, 4**6, 2))
        log_z = conditional_smc(source, given, 2, twist=ODD, ess_threshold=1)
        total += p * np.exp(-log_z).mean()
    assert total == pytest.approx(np.exp(-source.log_z[0]), rel=1e-12)


@pytest.mark.parametrize("twist", ["none", "prefix", "next"])
def test_filters_from_exact_draws_have_the_mean_of_one_over_z(twist):
    source = replicates(1500, seed=8, eos=(2,), phi=soft)
    rng = np.random.default_rng(0)
    given = source.outcomes[rng.choice(len(source.outcomes), 1500, p=source.p[:, 0])][None]
    log_z = conditional_smc(source, given, 6, twist=TWISTS[twist](source), ess_threshold=0.8)
    assert log_z.shape == (1, 1500)
    assert within(np.exp(-log_z[0]), np.exp(-source.log_z[0]))
    assert log_z.mean() > source.log_z[0]


def test_importance_from_exact_draws_has_the_mean_of_one_over_z():
    source = replicates(1, seed=4)
    rng = np.random.default_rng(1)
    given = source.outcomes[rng.choice(len(source.outcomes), 3000, p=source.p[:, 0])][:, None]
    rejected = source.q[source.log_p == -INF].sum()
    assert rejected > 0.1
    for n in (1, 5):
        log_z = conditional_importance(source, given, n)
        assert log_z.shape == (3000, 1)
        # n draws of the proposal may all be rejected: that part of 1/Z no exact draw shows.
        assert within(np.exp(-log_z[:, 0]), (1 - rejected**n) * np.exp(-source.log_z[0]))
    assert log_z.mean() > source.log_z[0]


@pytest.mark.parametrize("eos", [(), (2,)])
def test_the_exact_twist_draws_from_the_target(eos):
    source = abab(seed=5, eos=eos)
    sample = smc(source, 20_000, twist=ExactTwist(source))
    assert np.allclose(sample.log_weights, source.log_z, atol=1e-12)
    assert len(np.unique(sample.cluster)) == 20_000
    counts = np.bincount(source.index(sample.outcomes), minlength=len(source.outcomes))
    assert chi_square_p(counts, source.p) > 1e-6


def test_resampling_leaves_exact_weights_equal():
    source = abab(seed=5)
    sample = smc(source, 200, twist=ExactTwist(source), scheme=multinomial, ess_threshold=1)
    assert np.allclose(sample.log_weights, source.log_z, atol=1e-12)
    assert len(np.unique(sample.cluster)) < 200


def test_the_spread_of_the_clusters_is_the_variance_of_z():
    n, number = 12, 6000
    source = replicates(number, seed=11)
    sample = smc(source, n, twist=prefix_twist(partial), scheme=multinomial, ess_threshold=1)
    weights, eve = np.exp(sample.evidence), sample.evidence_cluster
    together = np.zeros((n, number))
    np.add.at(together, (eve, np.arange(number)), weights)
    apart = weights.sum(axis=0) ** 2 - (together**2).sum(axis=0)
    # Lee and Whiteley 2018: unbiased where all of T − 1 steps resample by independent choices.
    estimate = weights.mean(axis=0) ** 2 - (n / (n - 1)) ** 4 * apart / n**2
    z = weights.mean(axis=0)
    assert within(estimate - (z - np.exp(source.log_z[0])) ** 2, 0.0)
    assert z.var() > 0


def test_without_resampling_it_is_importance_sampling():
    source = abab(seed=2)
    for twist in (None, prefix_twist(partial)):
        sample = smc(source, 50, twist=twist, ess_threshold=0)
        plain = sample.log_target - source.log_proposal(sample.outcomes)
        assert np.allclose(sample.log_weights, plain, atol=1e-12) or np.array_equal(
            np.isinf(plain), np.isinf(sample.log_weights)
        )
        assert np.array_equal(sample.cluster, np.arange(50))
    finite = np.isfinite(plain)
    assert np.allclose(sample.log_weights[finite], plain[finite], atol=1e-12)


def test_contexts_are_filtered_apart():
    probs = np.array([[[0.7, 0.3], [0.5, 0.5]], [[0.2, 0.8], [0.9, 0.1]]])
    source = memoryless(probs, 5, lambda y: np.where(y.sum(-1) >= 3, 0.5 * y[:, 0], -INF))
    twist = next_twist(lambda prefix: 1.0 * np.arange(2) + prefix.sum(-1)[..., None])
    sample = smc(source, 4000, twist=twist)
    assert sample.outcomes.shape == (4000, 2, 2, 5)
    assert sample.log_z.shape == (2, 2)
    assert np.allclose(sample.log_z, source.log_z, atol=0.15)
    for context in np.ndindex(2, 2):
        mass = source.mass(sample, context)
        assert np.abs(mass - source.p[(slice(None), *context)]).sum() < 0.15


@pytest.mark.parametrize("twist", TWISTS)
def test_a_context_without_an_accepted_outcome_has_no_mass(twist):
    phi = lambda y: np.stack([np.where(y[:, 0] == 1, 0.0, -INF), np.full(len(y), -INF)], axis=-1)
    initial, transition = np.stack([INITIAL] * 2), np.stack([TRANSITION] * 2)
    source = markov(initial, transition, 3, phi)
    dead = prefix_twist(lambda p: np.where((p[..., 0] == 1) & np.array([True, False]), 0.0, -INF))
    given = {"prefix": dead, "next": next_twist(lambda p: np.full((*p.shape[:2], 3), -INF))}
    known = given.get(twist, TWISTS[twist](source))
    sample = smc(source, 40, twist=known, ess_threshold=0.9)
    assert sample.log_z[1] == -INF
    assert np.all(sample.log_weights[:, 1] == -INF)
    assert not np.isnan(sample.log_weights).any()
    assert np.all(sample.probabilities[:, 1] == 0)
    if twist != "next":
        assert abs(sample.log_z[0] - math.log(0.3)) < 0.8


entry = st.one_of(st.just(-INF), st.floats(-2.0, 1.0))
potentials = st.lists(st.tuples(entry, entry), min_size=15, max_size=15).map(np.array)
LOOKAHEAD = {
    "none": lambda ahead: None,
    "next": lambda ahead: ahead,
    "prefix": lambda ahead: prefix_twist(
        lambda p: np.take_along_axis(ahead.next_log_psi(p[..., :-1]), p[..., -1:], axis=-1)[..., 0]
    ),
    "everywhere": lambda ahead: prefix_twist(lambda p: np.full(p.shape[:2], -INF)),
    "middle": lambda ahead: next_twist(
        lambda p: np.full((*p.shape[:2], 3), -INF if p.shape[-1] == 1 else 0.0)
    ),
}
"""Of an exact look-ahead, which is −inf where nothing is accepted; and twists that end it all."""


def hard(phi, seed):
    """Sequences that may end, one transition impossible, and any potentials, in two contexts."""
    transition = np.array([[0.6, 0.2, 0.2], [0.0, 0.7, 0.3], [0.3, 0.3, 0.4]])
    chain = np.stack([INITIAL] * 2), np.stack([transition] * 2)
    return markov(*chain, 3, lambda y: phi[: len(y)], eos=(2,), pad=0, seed=seed)


@pytest.mark.parametrize("twist", LOOKAHEAD)
@given(phi=potentials, seed=st.integers(0, 99), threshold=st.sampled_from([0, 0.5, 1]))
@settings(max_examples=25, deadline=None)
def test_no_filter_gives_nan_whatever_is_rejected(twist, phi, seed, threshold):
    """Any outcomes rejected, all of them too, and twists that are −inf after any prefix."""
    source = hard(phi, seed)
    known = LOOKAHEAD[twist](ExactTwist(source))
    sample = smc(source, 4, twist=known, ess_threshold=threshold)
    for x in (sample.log_weights, sample.log_target, sample.probabilities, sample.log_z):
        assert not np.any(np.isnan(x))
        assert not np.any(x == INF)
    assert np.all(sample.log_weights[:, source.log_z == -INF] == -INF)
    if twist == "everywhere":
        assert np.all(sample.log_z == -INF)
    assert np.all(sample.log_target[sample.log_weights > -INF] > -INF)


@pytest.mark.parametrize("how", ["importance", "none", "next", "prefix"])
@given(phi=potentials, seed=st.integers(0, 99), threshold=st.sampled_from([0, 0.5, 1]))
@settings(max_examples=25, deadline=None)
def test_no_estimate_from_an_exact_draw_is_nan(how, phi, seed, threshold):
    """A finite log Ẑ from an outcome that the target accepts; from any other a refusal."""
    source = hard(phi, seed)
    best = source.outcomes[source.log_p.argmax(axis=0)][None]
    if how == "importance":
        estimate = lambda: conditional_importance(source, best, 4)
    else:
        known = LOOKAHEAD[how](ExactTwist(source))
        estimate = lambda: conditional_smc(source, best, 4, twist=known, ess_threshold=threshold)
    if np.all(source.log_z > -INF):
        assert np.all(np.isfinite(estimate()))
    else:
        with pytest.raises(ValueError, match="excludes"):
            estimate()


@pytest.mark.parametrize("twist", ["none", "prefix", "next"])
def test_ended_outcomes_are_padded_and_keep_their_weight(twist):
    source = abab(seed=7, eos=(2,))
    sample = smc(source, 300, twist=TWISTS[twist](source), ess_threshold=1)
    index = source.index(sample.outcomes)
    assert np.all(index >= 0)  # every one is listed, its padding included
    assert np.array_equal(sample.log_target, source.log_p[index])


def test_it_stops_where_all_have_ended():
    source = memoryless([0.05, 0.95], 30 // 3, lambda y: 0.0 * y[:, 0], eos=(1,), pad=1, seed=0)
    stream = source.tokens()
    sample = smc(source, 5, stream=stream)
    assert stream.steps < 10
    assert sample.calls == math.ceil(5 * stream.steps / 10) + 5
    assert np.allclose(sample.log_weights, 0.0, atol=1e-12)


def test_a_seed_reproduces_a_run():
    first, second = (smc(abab(seed=9), 20, twist=prefix_twist(partial)) for _ in range(2))
    assert np.array_equal(first.outcomes, second.outcomes)
    assert np.array_equal(first.log_weights, second.log_weights)


def test_refusals_say_what_to_do():
    source = abab()
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        smc(source, 0)
    with pytest.raises(ValueError, match="between 0"):
        smc(source, 5, ess_threshold=1.5)
    with pytest.raises(ValueError, match=r"NaN or \+inf"):
        smc(source, 5, twist=prefix_twist(lambda p: np.full(p.shape[:2], np.nan)))
    with pytest.raises(ValueError, match="one number for each"):
        smc(source, 5, twist=next_twist(lambda p: np.zeros(p.shape[:2])))
    with pytest.raises(ValueError, match="one number for each"):
        smc(source, 5, twist=prefix_twist(lambda p: np.zeros(p.shape)))
    with pytest.raises(ValueError, match=r"needed are \(m, \*contexts, T\)"):
        conditional_smc(source, np.zeros((2, 3), int), 5)
    with pytest.raises(ValueError, match="exact draws of the target"):
        conditional_smc(source, np.zeros((1, 4), int), 5)
    twist = prefix_twist(lambda p: np.full(p.shape[:2], -INF))
    with pytest.raises(ValueError, match="the twist excludes"):
        conditional_smc(source, np.ones((1, 4), int), 5, twist=twist)
