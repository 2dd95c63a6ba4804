"""Intervals for log Z and both KLs cover where they should, and are not claimed elsewhere.

On enumerated laws, replications side by side on the context axis, k̂ fitted in each. Expected ESS
is n / Σ P²/(q Z²); the tail of a law is what its k̂ is in most replications. The fast tier has 400
replications and limits five binomial standard errors wide, the slow one 2000 and 92% to 98%.
"""

import itertools
import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pytest
from scipy import stats

from infer_align import WeightedSample, diagnostics, moment_match, solve_moments
from infer_align.diagnostics._draws import draws
from infer_align.diagnostics._summary import summarise
from infer_align.divergences import forward_kl, reverse_kl
from infer_align.estimators import LogWeights
from infer_align.samplers import multinomial, next_twist, rejection, smc, systematic
from tests.sources import TableSource

ATOMS = 20_000


class Law(NamedTuple):
    """Tables over the outcomes: policy, unnormalised target, proposal, and the draws of each."""

    policy: np.ndarray
    density: np.ndarray
    proposal: np.ndarray | None
    n: int

    @property
    def truths(self) -> dict[str, float]:
        total = self.density.sum()
        p, q = self.density / total, self.policy
        both = (p > 0) & (q > 0)
        reverse = math.inf if (q[p == 0] > 0).any() else (q[both] * np.log(q[both] / p[both])).sum()
        forward = (p[both] * np.log(p[both] / q[both])).sum()
        return {"log_z": math.log(total), "reverse_kl": reverse, "forward_kl": forward}

    @property
    def ess(self) -> float:
        q = self.policy if self.proposal is None else self.proposal
        return self.n * self.density.sum() ** 2 / (self.density**2 / q).sum()


def bandit(n, beta=0.5, *, off_policy=False):
    prior = np.array([0.36, 0.24, 0.2, 0.12, 0.05, 0.03])
    density = prior * np.exp(np.array([0.0, 0.5, -0.25, 1.0, 0.15, 0.75]) / beta)
    return Law(
        np.full(6, 1 / 6) if off_policy else prior, density, prior if off_policy else None, n
    )


def two_peaks(n, mixed=0.0, length=6):
    """The catalogue's reward on shorter sequences; ``mixed`` towards the target."""
    ones = np.array(list(itertools.product((0, 1), repeat=length))).sum(-1)
    prior = 0.4**ones * 0.6 ** (length - ones)
    density = prior * np.exp(np.abs(ones - 2.4) / 2.4 / 0.2)
    return Law((1 - mixed) * prior + mixed * density / density.sum(), density, None, n)


def rare_constraint(n, letters):
    """The catalogue's constraint; the proposal is memoryless with these letters."""
    y = np.array(list(itertools.product(range(3), repeat=8)))
    accepted = (y == 2).sum(-1) >= 7
    return Law(
        np.array(letters)[y].prod(-1), np.array((0.5, 0.3, 0.2))[y].prod(-1) * accepted, None, n
    )


def lognormal(n, ess):
    z = np.array([NormalDist().inv_cdf((i + 0.5) / ATOMS) for i in range(ATOMS)])
    density = np.exp(math.sqrt(math.log(n / ess)) * z) / ATOMS
    return Law(np.full(ATOMS, 1 / ATOMS), density, None, n)


def pareto(n, k):
    """Weights u^−k, of tail index k until the 20,000 atoms are told apart."""
    density = ((np.arange(ATOMS) + 0.5) / ATOMS) ** -k / ATOMS
    return Law(np.full(ATOMS, 1 / ATOMS), density, None, n)


def rough(n):
    """3^7 sequences, a random reward each, drawn from a policy between prior and target."""
    rng = np.random.default_rng(9)
    prior = rng.dirichlet(np.ones(2187))
    density = prior * np.exp(1.2 * rng.normal(size=2187))
    policy = prior * np.exp(0.7 * rng.normal(size=2187))
    proposal = 0.5 * prior + 0.5 * density / density.sum()
    return Law(policy / policy.sum(), density, proposal, n)


# k̂ < 0.5 and an expected ESS of at least 200.
COVERED = {
    "bandit": lambda: bandit(400),
    "bandit, sharp": lambda: bandit(1500, beta=0.25),
    "bandit, off-policy": lambda: bandit(600, off_policy=True),
    "two peaks": lambda: two_peaks(5000),
    "two peaks, half way": lambda: two_peaks(500, 0.5),
    "rare constraint, good proposal": lambda: rare_constraint(600, (0.06, 0.06, 0.88)),
    "lognormal, ESS 210": lambda: lognormal(1000, 205),
    "lognormal, ESS 250": lambda: lognormal(1000, 250),
    "lognormal, ESS 250 of 400": lambda: lognormal(400, 250),
    "lognormal, ESS 400": lambda: lognormal(1000, 400),
    "lognormal, ESS 1000": lambda: lognormal(4000, 1000),
    "Pareto 0.3": lambda: pareto(1000, 0.3),
    "Pareto 0.4": lambda: pareto(2000, 0.4),
    "rough, off-policy": lambda: rough(700),
}
QUICK = (
    "bandit",
    "bandit, off-policy",
    "two peaks, half way",
    "rare constraint, good proposal",
    "lognormal, ESS 250",
    "lognormal, ESS 400",
)
# A tail of k >= 0.5 or an expected ESS below 200.
FLAGGED = {
    "bandit": lambda: bandit(375),
    "two peaks": lambda: two_peaks(3000),
    "rare constraint, good proposal": lambda: rare_constraint(490, (0.06, 0.06, 0.88)),
    "rare constraint, prior": lambda: rare_constraint(1000, (0.5, 0.3, 0.2)),
    "lognormal, ESS 100": lambda: lognormal(1000, 100),
    "lognormal, ESS 195": lambda: lognormal(1000, 187),
    "lognormal, ESS 190 of 400": lambda: lognormal(400, 190),
    "Pareto 0.8": lambda: pareto(1000, 0.8),
    "Pareto 1.2": lambda: pareto(1000, 1.2),
}


def study(law, replications, seed=1):
    """Statistics (5, replications) of each estimate, and the median k̂."""
    rng = np.random.default_rng(seed)
    q = law.policy if law.proposal is None else law.proposal
    cdf = q.cumsum()
    parts, khat = [], []
    for start in range(0, replications, 200):
        count = min(200, replications - start)
        y = np.searchsorted(cdf, rng.random((law.n, count)) * cdf[-1], side="right")
        with np.errstate(divide="ignore"):
            log_p, log_pi, log_q = (np.log(x)[y] for x in (law.density, law.policy, q))
        weights = LogWeights(log_pi, log_p, None if law.proposal is None else log_q)
        summary = summarise(draws(weights), (reverse_kl, forward_kl), 0.95)
        parts.append(summary.contexts)
        khat.append(summary.weights["pareto_khat"])
    joined = {name: np.concatenate([p[name] for p in parts], axis=1) for name in law.truths}
    return joined, float(np.median(np.concatenate(khat)))


def shares(law, replications):
    """Coverage and share of claims, by name; and the median k̂."""
    columns, khat = study(law, replications)
    covered, claimed = {}, {}
    for name, truth in law.truths.items():
        _, _, low, high, reliable = columns[name]
        covered[name] = np.mean((low <= truth) & (truth <= high))
        claimed[name] = np.mean(reliable)
    return covered, claimed, khat


@pytest.mark.parametrize("name", QUICK)
def test_intervals_cover(name):
    law = COVERED[name]()
    covered, _, khat = shares(law, 400)
    assert khat < 0.5
    assert law.ess >= 200
    slack = 5 * math.sqrt(0.95 * 0.05 / 400)
    assert min(covered.values()) >= 0.95 - slack, covered


@pytest.mark.slow
@pytest.mark.parametrize("name", COVERED)
def test_intervals_cover_in_2000_replications(name):
    law = COVERED[name]()
    covered, claimed, khat = shares(law, 2000)
    assert khat < 0.5
    assert law.ess >= 200
    for kind, share in covered.items():
        # Where few claim, their intervals are longer, so that they hold as often as they say.
        most = 0.98 if claimed[kind] > 0.9 else 1.0
        assert law.truths[kind] == math.inf or 0.92 <= share <= most, covered
    print(name, round(law.ess), round(khat, 2), covered, claimed)  # -rP shows it


@pytest.mark.parametrize("name", FLAGGED)
def test_other_records_are_flagged(name):
    """A divergence that one draw shows to be infinite is certain whatever the weights."""
    law = FLAGGED[name]()
    _, claimed, khat = shares(law, 400)
    assert khat >= 0.5 or law.ess < 200
    for estimate, truth in law.truths.items():
        if math.isinf(truth):
            assert claimed[estimate] == 1
        else:
            assert claimed[estimate] <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400), claimed


@pytest.mark.parametrize("name", ["bandit, sharp", "two peaks", "lognormal, ESS 400"])
def test_good_records_are_claimed(name):
    """Flags are no use if they are everywhere: twice the ESS needed, or a tail without weight."""
    _, claimed, _ = shares(COVERED[name](), 200)
    assert min(claimed.values()) > 0.9, claimed


@pytest.mark.slow
@pytest.mark.parametrize("name", FLAGGED)
def test_other_records_are_flagged_in_2000_replications(name):
    law = FLAGGED[name]()
    _, claimed, _ = shares(law, 2000)
    for estimate, truth in law.truths.items():
        if truth < math.inf:
            assert claimed[estimate] <= 0.05, claimed


# k̂ has a standard deviation of some 0.13 here, so that a part of such records has k̂ < 0.5. Asking
# for k̂ + sd < 0.5 lets a third of them pass, and a third fewer good ones, of which the luckier
# stay: KL(p‖π) of Pareto 0.3 is then covered in 91% of its claims, not in 94%.
NEAR = {
    "Pareto 0.55": (lambda: pareto(2000, 0.55), 0.42),
    "Pareto 0.6": (lambda: pareto(4000, 0.6), 0.24),
    "Pareto 0.65": (lambda: pareto(4000, 0.65), 0.14),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NEAR)
def test_records_just_beyond_the_limit_are_mostly_flagged(name):
    law, most = NEAR[name]
    _, claimed, khat = shares(law(), 2000)
    assert khat > 0.5
    assert max(claimed.values()) <= most
    print(name, round(khat, 2), claimed)  # -rP shows it


def of_quantiles(quantile, n):
    """Weights of a law given by its quantile function, on the 20,000 atoms."""
    density = quantile((np.arange(ATOMS) + 0.5) / ATOMS) / ATOMS
    return Law(np.full(ATOMS, 1 / ATOMS), density, None, n)


def discrete(probs, weights, n):
    q = np.array(probs, dtype=float) / np.sum(probs)
    return Law(q, q * np.array(weights), None, n)


def two_lognormals(u):
    """Of spread 0.4, and of spread 1 and larger, half of the atoms each."""
    z = stats.norm.ppf(u[::2])
    return np.concatenate([np.exp(0.4 * z), np.exp(0.5 + z)])


def constrained_lognormal(u):
    """A fifth accepted, with lognormal weights."""
    kept = len(u) // 5
    z = stats.norm.ppf((np.arange(kept) + 0.5) / kept)
    return np.concatenate([np.zeros(len(u) - kept), np.exp(0.7 * z)])


# Laws that no rule was made on: the claims of each are held against the truth by themselves.
FRESH = {
    "weights 20 of 0.1": lambda: discrete([0.9, 0.1], [1, 20], 1000),
    "weights 20 of 0.1, more draws": lambda: discrete([0.9, 0.1], [1, 20], 2500),
    "a rare outcome": lambda: discrete([0.99, 0.01], [1, 30], 3000),
    "four values": lambda: discrete([0.6, 0.3, 0.08, 0.02], [1, 3, 9, 27], 1000),
    "geometric": lambda: discrete(0.5 ** np.arange(1, 12), 1.25 ** np.arange(11), 500),
    "gamma": lambda: of_quantiles(stats.gamma(0.25).ppf, 2000),
    "exponential": lambda: of_quantiles(stats.expon.ppf, 500),
    "beta": lambda: of_quantiles(stats.beta(0.1, 1).ppf, 2500),
    "two lognormals": lambda: of_quantiles(two_lognormals, 1500),
    "constraint on lognormals": lambda: of_quantiles(constrained_lognormal, 2500),
    "constraint": lambda: discrete([0.75, 0.25], [0, 1], 1000),
    "bandit, off-policy, sharper": lambda: bandit(700, beta=0.4, off_policy=True),
    "lognormal, ESS 225": lambda: lognormal(1000, 225),
    "lognormal, ESS 300": lambda: lognormal(1000, 300),
    "Pareto 0.2": lambda: pareto(600, 0.2),
    "Pareto 0.35": lambda: pareto(1500, 0.35),
    "Pareto 0.45": lambda: pareto(4000, 0.45),
}
RARELY = 0.06
"""Share of the replications up to which a law counts as not claimed."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [*COVERED, *FRESH])
def test_claims_cover_in_4000_replications(name):
    """Of the replications that claim: near a limit they are not those that do not."""
    law = (COVERED | FRESH)[name]()
    columns, khat = study(law, 4000, seed=3)
    found = {}
    for estimate, truth in law.truths.items():
        _, _, low, high, reliable = columns[estimate]
        claim = reliable > 0
        hit = (low <= truth) & (truth <= high)
        found[estimate] = (claim.mean(), hit[claim].mean() if claim.any() else math.nan)
    print(name, round(law.ess), round(khat, 2), found)  # -rP shows it
    for estimate, (claimed, covered) in found.items():
        if claimed > RARELY and law.truths[estimate] < math.inf:
            assert 0.92 <= covered <= 0.98, (estimate, found)


def hidden(n, replications, log_bound, *, mass=1e-3, weight=1e3, seed=4):
    """Shares of claims of a law with a mode of that mass and weight, and of claims that hold."""
    rng = np.random.default_rng(seed)
    truth = math.log(1 - mass + mass * weight)
    claims, held = [], []
    for _ in range(replications // 200):
        log_w = np.minimum(rng.normal(-0.125, 0.5, size=(n, 200)), 2.5)
        log_w = np.where(rng.random((n, 200)) < mass, math.log(weight), log_w)
        bound = None if log_bound is None else np.full(200, log_bound)
        summary = summarise(
            draws(LogWeights(np.zeros_like(log_w), log_w)), (reverse_kl, forward_kl), 0.95,
            log_bound=bound,
        )  # fmt: skip
        claims.append([summary.contexts[k][4] for k in ("log_z", "reverse_kl", "forward_kl")])
        _, _, low, high, reliable = summary.contexts["log_z"]
        held.append(((low <= truth) & (truth <= high))[reliable > 0])
    return np.concatenate(claims, axis=1).mean(axis=1), np.concatenate(held)


@pytest.mark.parametrize(
    "replications", [400, pytest.param(4000, marks=pytest.mark.slow)], ids=["fast", "slow"]
)
@pytest.mark.parametrize("n", [500, 1000])
def test_a_hidden_mode_is_claimed_unless_its_bound_is_known(n, replications):
    """Excluded from what is claimed, and named: without a bound e^{-n/1000} of the records lie."""
    claims, held = hidden(n, replications, None)
    assert claims == pytest.approx(math.exp(-n / 1000), abs=5 * 0.5 / math.sqrt(replications))
    assert held.mean() == 0
    claims, _ = hidden(n, replications, math.log(1e3))
    assert max(claims) <= 0.01


@pytest.mark.slow
def test_a_small_known_bound_is_claimed_and_covers():
    """Weights up to 12: what 4000 draws may miss is less than the interval."""
    free, _ = hidden(4000, 2000, None, mass=1e-3, weight=12.0)
    claims, held = hidden(4000, 2000, math.log(12.2), mass=1e-3, weight=12.0)
    assert min(claims) > 0.8
    assert (claims >= free - 0.01).all()  # the others have too high a k̂
    assert 0.92 <= held.mean() <= 0.98


def pooled_claims(log_weights, truth, replications):
    """Share of claims of pooled estimates, and of those that hold; weights (n, contexts) each."""
    hits = {name: [] for name in truth}
    for _ in range(replications):
        log_w = log_weights()
        weights = LogWeights(np.zeros_like(log_w), log_w)
        pooled = summarise(draws(weights), (reverse_kl, forward_kl), 0.95).pooled
        for name in truth:
            if pooled[name].reliable:
                hits[name].append(pooled[name].low <= truth[name] <= pooled[name].high)
    return {name: (len(x) / replications, np.mean(x)) for name, x in hits.items()}


@pytest.mark.slow
def test_claims_of_contexts_with_unequal_z_cover():
    """Pooled over 20 contexts of log Z from -3 to 3, on other spreads."""
    rng = np.random.default_rng(5)
    log_z, sigma = np.linspace(-3, 3, 20), np.linspace(0.2, 1.0, 20)
    kl = (sigma**2 / 2).mean()
    draw = lambda: sigma * rng.normal(size=(1200, 20)) - sigma**2 / 2 + log_z
    got = pooled_claims(draw, {"log_z": 0.0, "reverse_kl": kl, "forward_kl": kl}, 2000)
    print(got)  # -rP shows it
    assert all(claimed > 0.5 and 0.92 <= held <= 0.98 for claimed, held in got.values())


@pytest.mark.slow
@pytest.mark.parametrize(("contexts", "n", "ess"), [(3, 1000, 300), (10, 400, 250)])
def test_claims_of_contexts_near_the_limit_cover(contexts, n, ess):
    """All pass together in a fifth to two fifths of the replications; without room for it, KL(p‖π)
    would be covered in 79% and 92% of these. The room is an upper bound."""
    rng = np.random.default_rng(8)
    sigma = math.sqrt(math.log(n / ess))
    kl = sigma**2 / 2
    draw = lambda: sigma * rng.normal(size=(n, contexts)) - kl
    got = pooled_claims(draw, {"log_z": 0.0, "reverse_kl": kl, "forward_kl": kl}, 2000)
    print(contexts, n, ess, got)  # -rP shows it
    assert all(claimed > 0.1 and held >= 0.92 for claimed, held in got.values())


@pytest.mark.slow
def test_claims_of_clusters_cover():
    """300 clusters of 2 to 6 alike outcomes: means, and log Z with an upper bound of its error.

    A cluster's size is taken for random, as the offspring of a particle are.
    """
    rng = np.random.default_rng(6)
    hits = {"log_z": [], "target_h": []}
    for _ in range(20):
        sizes = rng.integers(2, 7, size=300)
        cluster = np.repeat(np.arange(300), sizes)
        common = rng.normal(size=(300, 100))
        own = rng.normal(size=(len(cluster), 100))
        x = math.sqrt(0.8) * common[cluster] + math.sqrt(0.2) * own
        log_w = 0.5 * x - 0.125  # E w = 1, E_p x = 0.5
        labels = np.broadcast_to(cluster[:, None], x.shape)
        sample = WeightedSample(
            None, log_w, log_w, evidence=log_w, cluster=labels, evidence_cluster=labels
        )
        data = diagnostics.assess_sample(sample, features={"h": x})["diagnostics/contexts"]
        for name, truth in (("log_z", 0.0), ("target_h", 0.5)):
            _, _, low, high, reliable = data[name].values
            hits[name].append(((low <= truth) & (truth <= high))[reliable > 0])
    covered = {
        name: (np.concatenate(x).size / 2000, np.concatenate(x).mean()) for name, x in hits.items()
    }
    print(covered)
    assert all(claimed > 0.5 and held >= 0.92 for claimed, held in covered.values())
    assert covered["target_h"][1] <= 0.98


class Coin:
    """A Bernoulli law of NumPy numbers, as a base of moments."""

    event_shape, batch_shape = (), ()

    def __init__(self, p):
        self.p = np.array([1 - p, p])

    def log_prob(self, value):
        return np.log(self.p)[value]


@pytest.mark.slow
@pytest.mark.parametrize("n", [20_000, 25_000, 28_000, 32_000, 45_000])
def test_claims_of_moments_of_a_rare_feature_cover(n):
    """0.002 moved to 0.5, by every number of rare draws with its binomial probability."""
    target = moment_match(Coin(0.002), {"rare": (lambda y: y == 1, 0.5)})
    counts = stats.binom(n, 0.002)
    claimed = held = 0.0
    for count in range(*counts.ppf([1e-5, 1 - 1e-5]).astype(int)):
        y = (np.arange(n) < count).astype(int)
        fit = solve_moments(target, WeightedSample(y, np.zeros(n), np.zeros(n)))
        odds = 0.002 / 0.998 * math.exp(fit.multipliers["rare"])
        hit = abs(odds / (1 + odds) - 0.5) <= 1.96 * fit.standard_errors["rare"]
        claimed += counts.pmf(count) * fit.reliable
        held += counts.pmf(count) * (fit.reliable and hit)
    print(n, claimed, held / claimed)  # -rP shows it
    assert claimed <= RARELY or 0.92 <= held / claimed <= 0.98


def pooled_shares(replications, *, seed=2):
    """Coverage of pooled intervals: 12 unlike contexts, of lognormal weights at ESS 210 to 400."""
    rng = np.random.default_rng(seed)
    sigma = np.sqrt(np.log(1000 / np.linspace(210, 400, 12)))
    hits = {"log_z": 0, "reverse_kl": 0, "forward_kl": 0}
    truth = {"log_z": 0.0, "reverse_kl": (sigma**2 / 2).mean(), "forward_kl": (sigma**2 / 2).mean()}
    for _ in range(replications):
        log_w = sigma * rng.normal(size=(1000, 12)) - sigma**2 / 2
        weights = LogWeights(np.zeros_like(log_w), log_w)
        pooled = summarise(draws(weights), (reverse_kl, forward_kl), 0.95).pooled
        for name in hits:
            hits[name] += pooled[name].low <= truth[name] <= pooled[name].high
    return {name: hit / replications for name, hit in hits.items()}


def test_pooled_intervals_cover():
    assert min(pooled_shares(60).values()) >= 0.95 - 5 * math.sqrt(0.95 * 0.05 / 60)


@pytest.mark.slow
def test_pooled_intervals_cover_in_2000_replications():
    covered = pooled_shares(2000)
    assert all(0.92 <= share <= 0.99 for share in covered.values()), covered


def peaks_source(replications, seed):
    """`two_peaks` of length 6 as a token source, one context a replication, and another policy."""
    y = np.array(list(itertools.product((0, 1), repeat=6)))
    law = two_peaks(1)
    other = 0.55 ** y.sum(-1) * 0.45 ** (6 - y.sum(-1))
    table = np.broadcast_to(np.log(law.policy)[:, None], (64, replications))
    density = np.broadcast_to(np.log(law.density)[:, None], (64, replications))
    p = law.density / law.density.sum()
    truths = {"log_z": math.log(law.density.sum()), "forward_kl": (p * np.log(p / other)).sum()}
    truths["entropy_target"] = -(p * np.log(p)).sum()
    truths["target_ones"] = (p * y.sum(-1)).sum()
    return TableSource(y, table, density, seed=seed, vocabulary=2), np.log(other), truths


def sample_shares(sample, source, log_other, truths):
    """Coverage and claims of `assess_sample` over the contexts."""
    log_policy = log_other[source.index(sample.outcomes)]
    ones = sample.outcomes.sum(-1) * 1.0
    tree = diagnostics.assess_sample(sample, log_policy=log_policy, features={"ones": ones})
    data = tree["diagnostics/contexts"]
    out = {}
    for name, truth in truths.items():
        _, _, low, high, reliable = data[name].values
        out[name] = (np.mean((low <= truth) & (truth <= high)), np.mean(reliable))
    return out, data


def towards_peaks(prefix):
    """log ψ of the next tokens: the reward if the sequence went on in kind, at half strength."""
    ones = prefix.sum(-1, keepdims=True) + np.arange(2)
    return 0.5 * np.abs(ones - 0.4 * (prefix.shape[-1] + 1)) / 2.4 / 0.2


@pytest.mark.parametrize(
    ("scheme", "replications"),
    [
        (multinomial, 100),
        pytest.param(multinomial, 2000, marks=pytest.mark.slow),
        pytest.param(systematic, 2000, marks=pytest.mark.slow),
    ],
)
def test_particle_filters_cover(scheme, replications):
    """By the spread of the eves: of means as it is, of log Z an upper bound of the error."""
    size = min(200, replications)
    got: dict[str, list] = {}
    for seed in range(replications // size):
        source, other, truths = peaks_source(size, 10 + seed)
        twist = next_twist(towards_peaks)
        sample = smc(source, 2000, twist=twist, scheme=scheme, ess_threshold=1)
        assert len(np.unique(sample.cluster[:, 0])) < 1900  # it has resampled
        shares, _ = sample_shares(sample, source, other, truths)
        for name, (cover, _) in shares.items():
            got.setdefault(name, []).append(cover)
    covered = {name: np.mean(x) for name, x in got.items()}
    fast = replications < 2000
    assert min(covered.values()) >= (0.84 if fast else 0.92), covered
    assert covered["target_ones"] <= (1.0 if fast else 0.98), covered


@pytest.mark.parametrize(
    "replications", [100, pytest.param(2000, marks=pytest.mark.slow)], ids=["fast", "slow"]
)
def test_rejection_samples_cover(replications):
    """Unmatched, KL(p‖π) and the entropy have an upper bound of their error: 92% at least."""
    source, other, truths = peaks_source(replications, 5)
    bound = float((source.log_p - source.log_q).max())
    sample = rejection(source, 300, bound)
    got, _ = sample_shares(sample, source, other, truths)
    slack = 5 * math.sqrt(0.95 * 0.05 / replications) if replications < 2000 else 0.03
    assert min(cover for cover, _ in got.values()) >= 0.95 - slack, got
    if replications >= 2000:
        assert got["log_z"][0] <= 0.98
        assert got["target_ones"][0] <= 0.98
    assert min(claim for _, claim in got.values()) > 0.95, got
