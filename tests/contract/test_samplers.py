"""Every sampler draws from the exact target, and estimates Z without bias."""

import functools
import itertools
import warnings
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import poisson

from infer_align import WeightedSample, samplers
from infer_align.samplers import (
    acceptance_curve,
    best_of_n,
    choose_log_beta,
    importance,
    independence_metropolis,
    local_metropolis,
    pareto_smooth,
    quasi_rejection,
    rejection,
    resample,
    sampling_importance_resampling,
)
from tests.sources import INF, TableSource, abab, bandit, chi_square_p, log, logsumexp, memoryless

SOURCES = {
    "bandit": bandit,
    "contexts": functools.partial(bandit, contexts=3),
    "sequences": abab,
    "ended": functools.partial(abab, eos=(2,)),
}
every_source = pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)


def log_bound(source):
    """log sup P/q of each context."""
    return np.where(source.log_q > -INF, source.log_p - source.log_q, -INF).max(axis=0)


def contexts(source):
    return np.ndindex(source.shape)


def drawn_counts(source, sample, context):
    """How often each listed outcome was drawn."""
    return np.bincount(source.index(sample.outcomes)[:, *context], minlength=len(source.outcomes))


def local(source, n, steps, **settings):
    size = None if source.vocabulary else len(source.outcomes)
    return local_metropolis(source, n, steps, vocabulary_size=size, **settings)


EXACT = {
    "rejection": lambda s, n: rejection(s, n, log_bound(s)),
    "quasi_rejection": lambda s, n: quasi_rejection(s, n, log_bound(s) + 0.1),
    "resampling": lambda s, n: sampling_importance_resampling(
        s, n, 40 * n, scheme=samplers.multinomial
    ),
    "independence": lambda s, n: independence_metropolis(s, n, 40),
    "local": lambda s, n: local(s, n, 40),
}
"""Equally weighted draws of the target: of the last three nearly."""
every_sampler = pytest.mark.parametrize("draw", EXACT.values(), ids=EXACT)


@every_source
@every_sampler
def test_outcomes_have_the_target_s_law(draw, make):
    """χ² against the exact target in every context, and a record that fits its outcomes."""
    source = make(seed=3)
    sample = draw(source, 3000)
    assert np.all(sample.log_weights == 0)
    assert sample.log_target == pytest.approx(source.log_target(sample.outcomes))
    for c in contexts(source):
        assert chi_square_p(drawn_counts(source, sample, c), source.p[:, *c]) > 1e-5
    error = sample.log_z - source.log_z
    v = np.exp(sample.evidence - source.log_z)
    assert np.all(np.abs(np.exp(error) - 1) <= 5 * v.std(axis=0) / np.sqrt(len(v)))


@every_source
@every_sampler
def test_calls_are_counted_and_seeds_reproduce(draw, make):
    """Calls are the outcomes drawn and scored per context."""
    first, second = make(seed=8), make(seed=8)
    one, two = draw(first, 50), draw(second, 50)
    for x, y in zip(one[:4], two[:4], strict=True):
        np.testing.assert_array_equal(x, y)
    # A pass of the token stream is an outcome too, and so is a proposal's log-probability.
    walks = first.drawn + first.scored
    if "local" in one.method:
        walks += 50 * 40
    assert one.calls == two.calls == walks
    assert np.any(draw(make(seed=9), 50).outcomes != one.outcomes)


@every_source
def test_importance_weights_are_exact(make):
    """Each outcome's weighted share is the target's, within five standard errors."""
    source = make(seed=1)
    sample = importance(source, 40_000)
    assert sample.calls == source.drawn == 40_000
    np.testing.assert_array_equal(sample.evidence, sample.log_weights)
    for c in contexts(source):
        v = np.exp(sample.log_weights[:, *c] - source.log_z[*c])
        assert abs(v.mean() - 1) < 5 * v.std() / 200
        for i in np.flatnonzero(source.p[:, *c] > 0.02):
            excess = v * ((source.index(sample.outcomes)[:, *c] == i) - source.p[i, *c])
            assert abs(excess.mean()) < 5 * excess.std() / 200


SMALL = {
    "importance": lambda s: importance(s, 2),
    "rejection": lambda s: rejection(s, 2, log_bound(s) + 1),
    "rejection of one": lambda s: rejection(s, 1, log_bound(s) + 1),
    "quasi_rejection": lambda s: quasi_rejection(s, 2, log_bound(s) + 1),
    "resampling": lambda s: sampling_importance_resampling(s, 5, 3),
    "independence": lambda s: independence_metropolis(s, 2, 2),
    "local": lambda s: local(s, 2, 1),
}


@pytest.mark.parametrize("draw", SMALL.values(), ids=SMALL)
@pytest.mark.filterwarnings("ignore:independence")
def test_log_z_is_unbiased_in_z(draw, monkeypatch):
    """The mean of Ẑ/Z over small samples is 1, also where the sample decides when to stop."""
    monkeypatch.setattr("infer_align.samplers._accept.LEAST_BATCH", 2)
    log_q = log([0.7, 0.1, 0.05, 0.05, 0.1])
    log_p = log([0.0, 0.1, 0.2, 0.05, 0.0])
    source = TableSource(np.arange(5), log_q, log_p, seed=5)
    ratio = np.array([np.exp(draw(source).log_z - source.log_z) for _ in range(80)])
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / np.sqrt(len(ratio))


def test_the_proposal_that_completes_a_sample_is_not_evidence(monkeypatch):
    """A condition met once in twenty: n/N of N proposals would be twice the truth at n = 2."""
    monkeypatch.setattr("infer_align.samplers._accept.LEAST_BATCH", 2)
    source = TableSource(np.arange(2), log([0.95, 0.05]), log([0.0, 0.05]), seed=1)
    ratio = np.array([20 * np.exp(rejection(source, 2).log_z) for _ in range(250)])
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / np.sqrt(len(ratio))


# -- rejection and quasi-rejection ----------------------------------------------------------------


def test_a_bound_that_is_none_is_refused():
    """The excess, the context and the remedies are named."""
    source = bandit(contexts=3)
    bound = log_bound(source)
    with pytest.raises(ValueError, match=r"(?s)context 1.*exceeded by 0\.25.*quasi_rejection"):
        rejection(source, 2000, bound - np.array([0.0, 0.25, 0.0]))
    assert rejection(source, 200, bound - 5e-4).log_weights.max() == 0
    with pytest.raises(ValueError, match="one for each context"):
        rejection(source, 2, np.zeros(2))
    with pytest.raises(ValueError, match="finite"):
        quasi_rejection(source, 2, INF)
    with pytest.raises(ValueError, match="max_calls"):
        rejection(source, 2, 9.0, max_calls=1)


def test_a_context_that_stays_short_says_so():
    """Missing outcomes have no weight, the record and a warning say how many."""
    y = np.arange(3)
    log_p = np.stack([log([0.5, 0.5, 0.0]), log([0.0, 0.0, 1e-9]), log([0.0, 0.0, 0.0])], axis=1)
    source = TableSource(y, log([0.4, 0.4, 0.2])[:, None] + np.zeros((3, 3)), log_p, name="rare")
    with pytest.warns(
        UserWarning, match=r"short in 2 of 3 contexts: 0 of 5 accepted in 400 calls \(context 1\)"
    ):
        sample = rejection(source, 5, 1.0, max_calls=400)
    assert np.isfinite(sample.log_weights).sum(axis=0).tolist() == [5, 0, 0]
    assert "short in 2 of 3" in sample.method
    assert sample.calls == len(sample.evidence) == 400
    assert sample.log_z[2] == -INF
    assert np.all(np.isfinite(sample.log_z[:2]))
    np.testing.assert_array_equal(sample.log_target, source.log_target(sample.outcomes))


@every_source
def test_quasi_rejection_has_the_law_that_it_says(make):
    """Unweighted p_β ∝ min(P, βq), weighted p, at the acceptance rate Z_β/β."""
    source = make(seed=4)
    log_beta = log_bound(source) - 0.8
    sample = quasi_rejection(source, 4000, log_beta)
    least = np.minimum(source.log_p, log_beta + source.log_q)
    curve = acceptance_curve(source.log_p - source.log_q, log_beta[None], log_proposal=source.log_q)
    for c in contexts(source):
        p_beta = np.exp(least[:, *c] - logsumexp(least[:, *c]))
        assert chi_square_p(drawn_counts(source, sample, c), p_beta) > 1e-5
        assert 0.5 * np.abs(p_beta - source.p[:, *c]).sum() == pytest.approx(
            curve.total_variation[0, *c]
        )
        assert np.abs(source.mass(sample, c) - source.p[:, *c]).max() < 0.04
    if source.shape == ():
        rate = float(sample.method.split("acceptance ")[1])
        assert rate == pytest.approx(float(curve.acceptance_rate[0]), abs=0.03)


POISSON = {  # p = Poisson(11), q = Poisson(10): β, acceptance rate, TVD, KL(p‖p_β), 1 − p(A_β)
    0.5: (0.9995, 0.12294, 0.04815, 0.99508),
    1.0: (0.8768, 0.07492, 0.01988, 0.54011),
    1.5: (0.6528, 0.01811, 0.00317, 0.14596),
    2.0: (0.4982, 0.00353, 0.00049, 0.03219),
}


def test_the_acceptance_curve_of_poissons():
    """Exact on a table to the digits of an independent computation, and near it on draws."""
    y, betas = np.arange(200), np.log(list(POISSON))
    log_q = poisson(10).logpmf(y)
    weights = lambda y: poisson(11).logpmf(y) - poisson(10).logpmf(y)
    exact = acceptance_curve(weights(y), betas, log_proposal=log_q)
    for i, (rate, tvd, kl, bound) in enumerate(POISSON.values()):
        got = [x[i] for x in exact[1:]]
        assert got == pytest.approx([rate, tvd, bound, kl], abs=5.01e-5)
        assert got[1:] == pytest.approx([tvd, bound, kl], abs=5.01e-6)
    draws = poisson(10).rvs(50_000, random_state=np.random.default_rng(0))
    estimated = acceptance_curve(weights(draws), betas)
    for got, want in zip(estimated[1:], exact[1:], strict=True):
        assert got == pytest.approx(want, abs=0.012)


def test_the_curve_where_nothing_is_accepted():
    """Contexts on the trailing axis; without an accepted outcome the bounds are trivial."""
    log_weights = np.array([[0.0, -INF], [1.0, -INF], [-INF, -INF]])
    curve = acceptance_curve(log_weights, [-1.0, 3.0])
    assert curve.log_betas.shape == curve.forward_kl.shape == (2, 2)
    assert [x[1, 1] for x in curve[1:]] == [0.0, 1.0, 1.0, INF]
    assert curve.acceptance_rate[0, 0] == pytest.approx(2 / 3)
    assert [x[1, 0] for x in curve[2:]] == [0.0, 0.0, 0.0]
    for bad in (np.array([np.nan]), np.array([INF]), np.array([])):
        with pytest.raises(ValueError, match="finite or -inf"):
            acceptance_curve(bad, 0.0)
    with pytest.raises(ValueError, match="finite"):
        acceptance_curve(np.zeros(2), INF)


def test_beta_for_a_rate_or_a_bound():
    """The curve at the chosen β has the wanted rate, or a bound no larger than wanted."""
    source = bandit(contexts=3)
    weights, table = source.log_p - source.log_q, {"log_proposal": source.log_q}
    for rate in (0.1, 0.5, 0.7):
        log_beta = choose_log_beta(weights, acceptance_rate=rate, **table)
        curve = acceptance_curve(weights, log_beta[None], **table)
        assert curve.acceptance_rate[0] == pytest.approx(rate, rel=1e-9)
    for bound in (0.0, 0.3, 0.75):
        log_beta = choose_log_beta(weights, total_variation_bound=bound, **table)
        curve = acceptance_curve(weights, np.stack([log_beta, log_beta - 1e-6]), **table)
        assert np.all(curve.total_variation_bound[0] <= bound + 1e-12)
        assert np.all(curve.total_variation_bound[1] > bound)
        assert np.all(curve.total_variation[0] <= curve.total_variation_bound[0] + 1e-12)
    with pytest.raises(ValueError, match="either"):
        choose_log_beta(weights)
    with pytest.raises(ValueError, match=r"0\.8; got 0\.9"):
        choose_log_beta(weights, acceptance_rate=0.9, **table)
    with pytest.raises(ValueError, match="say nothing"):
        choose_log_beta(np.full(3, -INF), acceptance_rate=0.5)
    with pytest.raises(ValueError, match="total variation"):
        choose_log_beta(weights, total_variation_bound=1.0)


# -- resampling -----------------------------------------------------------------------------------


def weighted(log_weights, **settings):
    rows = np.arange(len(log_weights))
    outcomes = np.broadcast_to(rows.reshape(-1, *(1,) * (log_weights.ndim - 1)), log_weights.shape)
    return WeightedSample(outcomes, log_weights, log_weights, evidence=log_weights, **settings)


def test_resampling_keeps_track_of_copies():
    """Copies of a row are a cluster, or belong to that of their row; the evidence stays."""
    sample = weighted(log([0.5, 0.25, 0.25, 0.0]))
    got = resample(sample, 8, np.random.default_rng(0))
    assert got.outcomes.tolist() == got.cluster.tolist() == [0] * 4 + [1] * 2 + [2] * 2
    assert got.log_z == sample.log_z
    chains = sample._replace(cluster=np.array([7, 7, 9, 9]))
    assert resample(chains, 8, np.random.default_rng(0)).cluster.tolist() == [7] * 6 + [9] * 2


def test_without_replacement():
    """Different rows, the first by the weights; too few accepted ones are refused."""
    p = np.array([0.5, 0.3, 0.2, 0.0])
    wide = np.repeat(log(p)[:, None], 4000, axis=1)
    one = resample(weighted(wide), 1, np.random.default_rng(0), replace=False)
    assert chi_square_p(np.bincount(one.outcomes[0], minlength=4), p) > 1e-5
    two = resample(weighted(wide), 2, np.random.default_rng(0), replace=False).outcomes
    assert np.all(two[0] != two[1])
    with pytest.raises(ValueError, match="4 different outcomes cannot be chosen from 3"):
        resample(weighted(log(p)), 4, np.random.default_rng(0), replace=False)


@pytest.mark.parametrize("k", [0.3, 0.7, 1.2])
def test_smoothing_finds_the_tail(k):
    """Known tail indices, with nine of ten draws rejected, and kept totals."""
    log_weights = np.full(200_000, -INF)
    log_weights[::10] = k * np.random.default_rng(6).exponential(size=20_000)
    smoothed = pareto_smooth(log_weights)
    assert smoothed.khat == pytest.approx(k, abs=0.2)
    assert np.array_equal(smoothed.log_weights == -INF, log_weights == -INF)
    assert logsumexp(smoothed.log_weights) == pytest.approx(logsumexp(log_weights))


def test_smoothing_has_a_defined_answer_where_there_is_no_tail():
    """Ties, few draws, one draw, none: the raw weights and a note."""
    ties = np.where(np.arange(300) % 3 == 0, 1.0, 0.0)
    columns = np.stack([ties, np.full(300, -INF), np.zeros(300)], axis=1)
    columns[:20, 1] = np.linspace(0, 1, 20)
    smoothed = pareto_smooth(columns)
    np.testing.assert_array_equal(smoothed.log_weights, columns)
    assert smoothed.khat.tolist() == [-INF, INF, -INF]
    assert "in 2 of 3 contexts (the largest weights tie)" in smoothed.note
    assert "in 1 of 3 contexts (fewer than 25" in smoothed.note
    for few in (np.zeros(1), np.full(50, -INF)):
        assert pareto_smooth(few).khat == INF
    tail = 0.5 * np.random.default_rng(0).exponential(size=1000)
    twice = pareto_smooth(np.concatenate([tail, tail])).log_weights
    np.testing.assert_allclose(twice[:1000], twice[1000:])
    sample = sampling_importance_resampling(bandit(), 10, 200, smooth=True)
    assert "the largest weights tie" in sample.method


# -- Markov chains --------------------------------------------------------------------------------


def test_independence_metropolis_after_two_steps():
    """Not yet the target: the exact law of a chain that starts at a draw of q."""
    source = bandit(seed=7)
    w = np.exp(source.log_p - source.log_q)
    with np.errstate(divide="ignore", invalid="ignore"):
        move = source.q * np.where(w[:, None] > 0, np.minimum(1, w / w[:, None]), w > 0)
    move += np.diag(1 - move.sum(axis=1))
    law = source.q @ move @ move
    with pytest.warns(
        UserWarning, match=r"short in 1 of 1 contexts: 29\d* of 30000.*Take more steps"
    ):
        sample = independence_metropolis(source, 30_000, 2)
    started = sample.log_weights == 0
    counts = np.bincount(sample.outcomes, minlength=6)
    assert chi_square_p(counts, law) > 1e-5
    assert started.mean() == pytest.approx(1 - 0.2**3, abs=0.005)
    assert 0.3 < float(sample.method.split("acceptance ")[1].split(";")[0]) < 0.9


def test_kept_states_are_clusters_of_a_chain():
    """The last states, thin steps apart; chains with too few steps are refused."""
    source = bandit(seed=7, contexts=2)
    sample = independence_metropolis(source, 10, 20, keep=3, thin=4)
    assert sample.outcomes.shape == sample.cluster.shape == (30, 2)
    np.testing.assert_array_equal(sample.cluster[:, 1], np.tile(np.arange(10), 3))
    assert sample.evidence.shape == (210, 2)
    assert sample.calls == 210
    with pytest.raises(ValueError, match="at least 9"):
        independence_metropolis(source, 10, 8, keep=3, thin=4)
    for n, keep, thin in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            local(source, n, 5, keep=keep, thin=thin)


def lengths(y, eos):
    ends = np.isin(y, eos)
    return np.where(ends.any(-1), np.argmax(ends, axis=-1) + 1, y.shape[-1])


def transition_matrix(source, substitution):
    """Local Metropolis by hand, from every outcome to every other."""
    y, q, p = source.outcomes, source.q, source.p
    n, count, others = len(y), lengths(y, source.eos), source.vocabulary - len(source.eos)
    move = np.zeros((n, n))
    for i, j in itertools.permutations(range(n), 2):
        if p[i] == 0:
            continue
        changed = y[i] != y[j]
        free = (np.arange(y.shape[1]) < count[i]) & ~np.isin(y[[i, j]], source.eos).any(axis=0)
        if changed.sum() == 1 and count[i] == count[j] and free[changed].all():
            positions = count[i] - np.isin(y[i], source.eos).any()
            chance = substitution / (positions * (others - 1))
            move[i, j] += chance * min(1.0, p[j] / p[i])
        for cut in range(count[i]):
            if np.all(y[i, :cut] == y[j, :cut]) and cut < count[j]:
                rest = np.all(y[:, :cut] == y[i, :cut], axis=1) & (count > cut)
                ratio = p[j] * q[i] * count[i] / (p[i] * q[j] * count[j])
                chance = (1 - substitution) / count[i] * q[j] / q[rest].sum()
                move[i, j] += chance * min(1.0, ratio)
    return move + np.diag(1 - move.sum(axis=1))


def one_step(source, edits, substitution, copies):
    """Where each accepted outcome goes in one step of many chains: counts (N, N)."""
    from infer_align.samplers._local import Chain, State

    rows = np.repeat(np.flatnonzero(source.log_p > -INF), copies)
    y = source.outcomes[rows]
    chain = Chain(source, edits, y, substitution, source.outcomes.shape[1:])
    state = State(y.reshape(len(rows), 1, -1), source.log_p[rows, None], source.log_q[rows, None])
    state, _ = chain.step(state)
    to = source.index(chain.shaped(state.tokens)[:, 0])
    np.testing.assert_array_equal(source.log_p[to], state.log_target[:, 0])
    np.testing.assert_allclose(source.log_q[to], state.log_proposal[:, 0])
    counts = np.zeros((len(source.outcomes),) * 2)
    np.add.at(counts, (rows, to), 1)
    return counts


def potential(y):
    return np.where((y == 1).sum(-1) >= 1, 0.8 * (y == 0).sum(-1) - 0.4 * (y == 1).sum(-1), -INF)


SEQUENCES = {
    "full": lambda: abab(seed=1),
    "ended": lambda: abab(seed=1, eos=(2,)),
    "padded": lambda: memoryless([0.4, 0.3, 0.2, 0.1], 3, potential, eos=(1, 3), pad=0, seed=1),
}


@pytest.mark.parametrize("make", SEQUENCES.values(), ids=SEQUENCES)
def test_local_moves_are_in_detailed_balance(make):
    """The rule is reversible exactly, and the sampler's steps follow the rule."""
    from infer_align.samplers._edits import TokenEdits

    source = make()
    move = transition_matrix(source, 0.4)
    flow = source.p[:, None] * move
    np.testing.assert_allclose(flow, flow.T, atol=1e-15)
    counts = one_step(source, TokenEdits(source.tokens(), int), 0.4, 4000)
    for i in np.flatnonzero(source.p > 0):
        assert chi_square_p(counts[i], move[i]) > 1e-6


def test_local_moves_of_plain_integers():
    """Without a token stream the other move is a fresh draw."""
    from infer_align.samplers._edits import WholeEdits

    source = bandit(seed=2)
    w = np.exp(source.log_p - source.log_q)
    move = np.zeros((6, 6))
    for i, j in itertools.permutations(range(4), 2):
        move[i, j] = 0.4 / 5 * min(1, source.p[j] / source.p[i])
        move[i, j] += 0.6 * source.q[j] * min(1, w[j] / w[i])
    move += np.diag(1 - move.sum(axis=1))
    counts = one_step(source, WholeEdits(source, source.outcomes, 6, ()), 0.4, 20_000)
    for i in range(4):
        assert chi_square_p(counts[i], move[i]) > 1e-6


def test_substitutions_may_leave_the_support_of_the_proposal():
    """An outcome that q cannot draw is reached by substitution, and left by it."""
    y = np.arange(3)
    source = TableSource(y, log([0.5, 0.5, 0.0]), log([0.2, 0.3, 0.5]), seed=0)
    sample = local_metropolis(source, 4000, 30, vocabulary_size=3)
    assert chi_square_p(np.bincount(sample.outcomes, minlength=3), source.p) > 1e-5


def test_chains_share_a_start_where_there_are_few():
    """They are one cluster then, the record says so, and a warning."""
    y = np.arange(3)
    source = TableSource(y, log([0.9, 0.07, 0.03]), log([0.0, 0.5, 0.5]), seed=1)
    with pytest.warns(UserWarning, match="starts of local .* short in 1 of 1 .*the same outcome"):
        sample = local_metropolis(source, 40, 5, vocabulary_size=3, max_calls=60)
    starts = int((sample.evidence > -INF).sum())
    assert 1 < starts < 20
    np.testing.assert_array_equal(sample.cluster, np.arange(40) % starts)
    assert np.all(sample.log_weights == 0)
    assert "starts short" in sample.method


def test_local_metropolis_refuses_what_it_cannot_edit():
    """Outcomes that are no tokens, an unknown vocabulary, a wrong one."""
    source = bandit()
    with pytest.raises(ValueError, match="give vocabulary_size"):
        local_metropolis(source, 2, 2)
    with pytest.raises(ValueError, match="must lie in 0"):
        local_metropolis(source, 200, 2, vocabulary_size=3)
    with pytest.raises(ValueError, match="leave it out"):
        local_metropolis(abab(), 2, 2, vocabulary_size=4)
    with pytest.raises(ValueError, match="probability"):
        local_metropolis(abab(), 2, 2, substitution=1.5)
    source.outcomes = source.outcomes + 0.5
    with pytest.raises(ValueError, match="independence_metropolis"):
        local_metropolis(source, 2, 2)


# -- best of n ------------------------------------------------------------------------------------


def test_best_of_n_with_ties():
    """The exact law: q(y) times the chance that its level is the best, shared within the level."""
    source = bandit(seed=3, contexts=2)
    reward = np.array([0.0, 1.0, 1.0, -INF, 2.0, 0.0])
    sample = best_of_n(source, lambda y: reward[y], 3, 20_000)
    assert sample.calls == source.drawn == 60_000
    assert sample.evidence is None
    assert np.all(sample.log_weights == 0)
    np.testing.assert_array_equal(sample.log_target, source.log_target(sample.outcomes))
    for c in range(2):
        q = source.q[:, c]
        upto, below = ((q * np.array([op(reward, r) for r in reward])).sum(axis=1)
                       for op in (np.less_equal, np.less))  # fmt: skip
        law = q * (upto**3 - below**3) / (upto - below)
        assert chi_square_p(drawn_counts(source, sample, (c,)), law) > 1e-5


def test_best_of_n_lets_go_of_what_it_drew():
    """Of each part the best are kept; all proposals of all parts were, to the end."""
    source, drawn, most = bandit(), [], []
    plain = source.draw

    def watched(n):
        most.append(sum(x() is not None for x in drawn))
        batch = plain(n)
        drawn.append(weakref.ref(batch.outcomes))
        return batch

    source.draw = watched
    sample = best_of_n(source, lambda y: y, 2048, 12)
    assert len(drawn) == 6
    assert max(most) <= 1
    assert sample.outcomes.shape == (12,)


def test_best_of_n_refuses_rewards_that_are_none():
    """Another shape, NaN, numbers below 1."""
    with pytest.raises(ValueError, match="one number an outcome"):
        best_of_n(abab(), lambda y: y, 2, 3)
    with pytest.raises(ValueError, match="NaN"):
        best_of_n(bandit(), lambda y: y * np.nan, 2, 3)
    with pytest.raises(ValueError, match="at least 1"):
        best_of_n(bandit(), lambda y: y, 0, 3)


# -- what no sampler may do -----------------------------------------------------------------------

ALL = {
    "importance": lambda s: importance(s, 6),
    "rejection": lambda s: rejection(s, 3, 3.0, max_calls=70),
    "quasi_rejection": lambda s: quasi_rejection(s, 3, 0.0, max_calls=70),
    "resampling": lambda s: sampling_importance_resampling(s, 4, 9),
    "smoothed": lambda s: sampling_importance_resampling(s, 4, 40, smooth=True),
    "independence": lambda s: independence_metropolis(s, 3, 3),
    "local": lambda s: local(s, 3, 3, max_calls=70),
    "best_of_n": lambda s: best_of_n(s, lambda y: 1.0 * y, 2, 3),
}
entry = st.one_of(st.just(-INF), st.floats(-2.0, 1.0))
log_densities = st.lists(st.tuples(entry, entry), min_size=2, max_size=5).map(np.array)


@pytest.mark.parametrize("draw", ALL.values(), ids=ALL)
@given(potential=log_densities, seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_nothing_is_nan_whatever_is_rejected(draw, potential, seed):
    """Two contexts with any potentials, all -inf too: zero accepted gives log Z = -inf."""
    log_q = log(np.full(potential.shape, 1 / len(potential)))
    source = TableSource(np.arange(len(potential)), log_q, log_q + potential, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        sample = draw(source)
    arrays = [sample.log_weights, sample.log_target, sample.probabilities]
    if sample.evidence is not None:
        arrays += [sample.evidence, sample.log_z]
        never = source.log_z == -INF
        assert np.all(sample.log_z[never] == -INF)
        assert np.all(sample.log_weights[:, never] == -INF)
    for x in arrays:
        assert not np.any(np.isnan(x))
        assert not np.any(x == INF)
    if "best" not in sample.method:
        positive = sample.log_weights > -INF
        assert np.all(sample.log_target[positive] > -INF)


def test_densities_that_are_none_are_refused():
    """NaN and +inf of the target, and a proposal that cannot score its own draws."""
    for bad in (np.nan, INF):
        source = TableSource(np.arange(2), np.zeros(2), np.zeros(2))
        source.log_p[:] = bad
        with pytest.raises(ValueError, match="finite, or -inf"):
            importance(source, 3)
    source = TableSource(np.arange(2), np.zeros(2), np.zeros(2))
    draw = source.draw
    source.draw = lambda n: draw(n)._replace(log_proposal=np.full(n, -INF))
    with pytest.raises(ValueError, match="do not fit"):
        rejection(source, 3)
    source.draw = lambda n: draw(n)._replace(log_target=np.zeros((n, 1)))
    with pytest.raises(ValueError, match="one number an outcome"):
        best_of_n(source, lambda y: y, 1, 2)
    with pytest.raises(ValueError, match="at least 1"):
        importance(bandit(), 0)
