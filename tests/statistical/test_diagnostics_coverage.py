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

from infer_align import diagnostics
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
    finite = {name: share for name, share in covered.items() if law.truths[name] < math.inf}
    assert all(0.92 <= share <= 0.98 for share in finite.values()), covered
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
    assert all(0.92 <= share <= 0.98 for share in covered.values()), covered


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
