"""Diversity, coverage, positions, drift and the frontier: each against an exact number."""

import builtins
import itertools
import math

import numpy as np
import pytest

from infer_align import diagnostics
from infer_align.diagnostics import (
    by_position,
    distinct_n,
    drift,
    expected_coverage,
    mode_coverage,
    self_bleu,
)
from infer_align.estimators import LogWeights
from infer_align.spaces import Space

V, T, EOS = 3, 3, 2
SPACE = Space.sequences(V, T, eos=EOS, pad=EOS)
Y = np.asarray(SPACE.outcomes)
LENGTHS = np.where((Y == EOS).any(1), (Y == EOS).argmax(1) + 1, T)
RNG = np.random.default_rng(7)


def table(seed: int) -> np.ndarray:
    """Next-token log-probabilities of every prefix of at most two tokens, by position."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(T, V, V, V))  # position, second last and last token
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def laws(seed: int) -> np.ndarray:
    """The next-token law, (N, T, V), on each prefix of each outcome."""
    logs = table(seed)
    out = np.empty((len(Y), T, V))
    for i, t in itertools.product(range(len(Y)), range(T)):
        last = Y[i, t - 1] if t else 0
        before = Y[i, t - 2] if t > 1 else 0
        out[i, t] = logs[t, before, last]
    return out


def of_tokens(law: np.ndarray) -> np.ndarray:
    """Log-probabilities (N, T) of the outcomes' own tokens."""
    return np.take_along_axis(law, Y[..., None], axis=-1)[..., 0]


POLICY, PRIOR = laws(1), laws(2)
INSIDE = np.arange(T) < LENGTHS[:, None]
LOG_POLICY = np.where(INSIDE, of_tokens(POLICY), 0.0).sum(1)
LOG_PRIOR = np.where(INSIDE, of_tokens(PRIOR), 0.0).sum(1)
KL = float((np.exp(LOG_POLICY) * (LOG_POLICY - LOG_PRIOR)).sum())


def test_distinct_n_counts_by_hand() -> None:
    words = [["a", "b", "a", "b"], ["a"], []]
    assert distinct_n(words, 1) == 2 / 5
    assert distinct_n(words, 2) == 2 / 3  # ab, ba, ab
    assert math.isnan(distinct_n(words, 5))
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        distinct_n(words, 0)


def test_self_bleu_between_repetition_and_difference() -> None:
    same, other = [1, 2, 3, 4, 5], [6, 7, 8, 9, 10]
    assert self_bleu([same] * 3) == pytest.approx(1.0)
    assert self_bleu([same, other]) < 1e-6
    assert 0.5 < self_bleu([same, same, other]) < 0.8  # two of three repeat
    assert math.isnan(self_bleu([same, []]))
    many = [list(RNG.integers(0, 4, size=6)) for _ in range(40)]
    few = self_bleu(many, max_sequences=10, seed=1)
    assert few == self_bleu(many, max_sequences=10, seed=1)
    assert few < self_bleu(many, max_sequences=40)  # more references, more matches


def test_self_bleu_is_that_of_the_library() -> None:
    """A hand-made BLEU: clipped precisions 3/4 and 1/3, brevity 1, effective order 2."""
    pair = [[1, 2, 3, 9], [1, 2, 9, 3]]
    # Of the first against the second: 1-grams 4/4; 2-grams (12, 23, 39) hit 12: 1/3; 3-grams 0/2,
    # smoothed to 1/(2·2); 4-grams 0/1, smoothed to 1/(4·1).
    expected = (1.0 * (1 / 3) * (1 / 4) * (1 / 4)) ** 0.25
    assert self_bleu(pair) == pytest.approx(expected)


def test_self_bleu_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def hidden(name: str, *rest):
        if name.startswith("sacrebleu"):
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", hidden)
    with pytest.raises(ModuleNotFoundError, match="pip install sacrebleu"):
        self_bleu([[1], [1]])


def test_expected_coverage_is_the_mean_over_all_samples() -> None:
    """Of every one of the 3^3 triples of draws, by probability."""
    p = np.array([[0.6, 0.2], [0.3, 0.5], [0.1, 0.3]])
    q = np.array([[0.2, 0.8], [0.1, 0.1], [0.7, 0.1]])
    modes = np.array([4, -1, 7])
    mass, hit = np.zeros(2), np.zeros(2)
    for triple in itertools.product(range(3), repeat=3):
        drawn = np.repeat(np.array(triple)[:, None], 2, axis=1)
        one = mode_coverage(np.log(p), drawn, modes=modes)
        weight = np.prod([q[i] for i in triple], axis=0)
        mass, hit = mass + weight * one.mass, hit + weight * one.modes
    found = expected_coverage(np.log(p), np.log(q), 3, modes=modes)
    np.testing.assert_allclose(found.mass, mass, rtol=1e-12)
    np.testing.assert_allclose(found.modes, hit, rtol=1e-12)
    assert found.n_modes.tolist() == [2, 2]
    itself = expected_coverage(np.log(p), np.log(p), 3, modes=modes)
    np.testing.assert_allclose(found.mass_of_target, itself.mass, rtol=1e-12)
    np.testing.assert_allclose(found.modes_of_target, itself.modes, rtol=1e-12)


def test_coverage_of_a_collapsed_policy_is_its_peak() -> None:
    p = np.array([0.5, 0.4, 0.06, 0.04, 0.0])
    with np.errstate(divide="ignore"):
        log_p, log_q = np.log(p), np.log([1.0, 0.0, 0.0, 0.0, 0.0])
    found = mode_coverage(log_p, np.zeros(1000, dtype=int))
    assert found.mass == pytest.approx(0.5)
    assert found.n_modes == 2  # 0.5 + 0.4 is 90%
    assert found.modes == pytest.approx(0.5)
    assert found.modes_of_target == pytest.approx(1.0)
    endless = expected_coverage(log_p, log_q, 10**9)
    assert endless.mass == pytest.approx(0.5)
    assert endless.mass_of_target == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mode_coverage(np.log([0.5, 0.2]), np.array([0])), "sum to"),
        (lambda: mode_coverage(np.log([0.5, 0.5]), np.array([2])), "0 to 1"),
        (lambda: mode_coverage(np.log([0.5, 0.5]), np.array([0]), modes=np.array([0])), "shape"),
        (
            lambda: mode_coverage(np.log([0.5, 0.5]), np.array([0]), modes=np.array([-1, -1])),
            "negative",
        ),
        (lambda: expected_coverage(np.log([0.5, 0.5]), np.log([1.0]), 2), "same outcomes"),
        (lambda: expected_coverage(np.log([1.0]), np.log([1.0]), 0), "at least 1"),
        (lambda: by_position(np.zeros((2, 3)), np.zeros((3,))), "lengths"),
        (lambda: by_position(np.zeros((2, 3)), np.ones(2), log_prob=np.zeros(2)), "sum to 1"),
        (lambda: drift(np.zeros(2), np.zeros(2), np.ones(3)), "shapes"),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_positions_sum_to_the_exact_kl() -> None:
    """The drawn token's log-ratio and the whole vocabulary's KL have equal means."""
    full = (np.exp(POLICY) * (POLICY - PRIOR)).sum(-1)
    drawn = of_tokens(POLICY) - of_tokens(PRIOR)
    by_full = by_position(full, LENGTHS, log_prob=LOG_POLICY)
    by_drawn = by_position(drawn, LENGTHS, log_prob=LOG_POLICY)
    np.testing.assert_allclose(by_full.value, by_drawn.value, rtol=1e-10)
    assert by_full.total == pytest.approx(KL, rel=1e-10)
    ends = np.exp(POLICY[0, 0, EOS])
    assert by_full.alive[0] == 1
    assert by_full.alive[1] == pytest.approx(1 - ends)
    assert by_full.per_token[1] == pytest.approx(by_full.value[1] / (1 - ends))
    entropy = by_position(-of_tokens(POLICY), LENGTHS, log_prob=LOG_POLICY)
    assert entropy.total == pytest.approx(-(np.exp(LOG_POLICY) * LOG_POLICY).sum(), rel=1e-10)


def test_positions_of_draws_are_unbiased_and_rao_blackwell_is_tighter() -> None:
    i = np.random.default_rng(3).choice(len(Y), size=(20_000, 2), p=np.exp(LOG_POLICY))
    full = (np.exp(POLICY) * (POLICY - PRIOR)).sum(-1)
    drawn = of_tokens(POLICY) - of_tokens(PRIOR)
    exact = by_position(full, LENGTHS, log_prob=LOG_POLICY)
    tight, loose = (by_position(x[i], LENGTHS[i]) for x in (full, drawn))
    for found in (tight, loose):
        z = (found.value - exact.value)[1:] / found.se[1:]
        assert np.abs(z).max() < 5
        assert np.abs(found.alive - exact.alive).max() < 5 * 0.5 / math.sqrt(40_000)
    assert tight.se[0] < 1e-12  # one prefix only: no noise at all
    assert (tight.se < 0.7 * loose.se).all()


def test_nothing_after_the_end_is_read() -> None:
    spoilt = np.where(INSIDE, of_tokens(POLICY), np.nan)
    found = by_position(spoilt, LENGTHS, log_prob=LOG_POLICY)
    assert np.isfinite(found.value).all()


def test_drift_is_a_ratio_of_sums() -> None:
    probability = np.exp(LOG_POLICY)
    per_token = -(probability * LOG_PRIOR).sum() / (probability * LENGTHS).sum()
    i = np.random.default_rng(4).choice(len(Y), size=(30_000, 2), p=probability)
    found = drift(LOG_POLICY[i], LOG_PRIOR[i], LENGTHS[i])
    z = (math.log(found.perplexity.value) - per_token) / (
        found.perplexity.se / found.perplexity.value
    )
    assert abs(z) < 5
    kl = KL / (probability * LENGTHS).sum()
    assert abs(found.kl_per_token.value - kl) < 5 * found.kl_per_token.se
    assert found.perplexity.low < found.perplexity.value < found.perplexity.high


def test_interval_of_the_drift_covers() -> None:
    """Over 500 replications, at the ratio's own standard error."""
    probability = np.exp(LOG_POLICY)
    exact = KL / (probability * LENGTHS).sum()
    rng = np.random.default_rng(5)
    inside = 0
    for _ in range(500):
        i = rng.choice(len(Y), size=300, p=probability)
        e = drift(LOG_POLICY[i], LOG_PRIOR[i], LENGTHS[i]).kl_per_token
        inside += e.low < exact < e.high
    assert 0.95 - 5 * 0.0098 < inside / 500 <= 1.0


def test_drift_beyond_the_prior_is_infinite() -> None:
    found = drift(np.log([0.5, 0.5]), np.array([-np.inf, -1.0]), np.array([1, 1]))
    assert found.perplexity.value == math.inf
    assert found.kl_per_token.value == math.inf
    one = drift(np.array([-1.0]), np.array([-1.0]), np.array([1]))
    assert one.perplexity.value == pytest.approx(math.e)
    assert not one.perplexity.reliable


def assessed(seed: int, log_proposal: np.ndarray | None = None):
    """Draws of π (or another law) for the tilt of the prior by the number of ones."""
    reward = (Y == 1).sum(1) * 0.7
    q = LOG_POLICY if log_proposal is None else log_proposal
    i = np.random.default_rng(seed).choice(len(Y), size=(4000, 2), p=np.exp(q))
    weights = LogWeights(
        LOG_POLICY[i], (LOG_PRIOR + reward)[i], None if log_proposal is None else q[i]
    )
    return reward, diagnostics.assess(
        weights, log_prior=LOG_PRIOR[i], features={"ones": (Y == 1).sum(1)[i]}
    )


@pytest.mark.parametrize("other", [None, LOG_PRIOR], ids=["own draws", "prior's draws"])
def test_frontier_points_are_reward_and_kl(other) -> None:
    reward, tree = assessed(6, other)
    (by_potential,) = diagnostics.frontier_points({"fit": tree}, scale=2.0)
    (by_feature,) = diagnostics.frontier_points({"fit": tree}, feature="ones")
    truth = float((np.exp(LOG_POLICY) * reward).sum())
    assert abs(by_potential.reward.value - 2 * truth) < 5 * by_potential.reward.se
    assert abs(by_feature.reward.value - truth / 0.7) < 5 * by_feature.reward.se
    assert abs(by_potential.kl.value - KL) < 5 * by_potential.kl.se
    assert by_potential.reward.se == pytest.approx(1.4 * by_feature.reward.se, rel=0.02)


def test_frontier_refuses_what_it_cannot_place() -> None:
    _, tree = assessed(6)
    with pytest.raises(ValueError, match="no feature 'twos'"):
        diagnostics.frontier_points({"fit": tree}, feature="twos")
    log_q = np.full(300, -1.0)
    without = diagnostics.assess(LogWeights(log_q, log_q))
    with pytest.raises(ValueError, match="log_prior"):
        diagnostics.frontier_points({"fit": without})
    hard = diagnostics.assess(
        LogWeights(log_q, np.where(np.arange(300) < 9, -np.inf, -1.0)), log_prior=log_q
    )
    with pytest.raises(ValueError, match="rejected draws"):
        diagnostics.frontier_points({"fit": hard})
