# %% [markdown]
# # 8. Diagnosing a fit
#
# A fit that has gone wrong can look right: its reward is high, its loss flat, its weights even.
# This tutorial fits one target twice, badly and well, on a model small enough to list all outcomes,
# and asks of every diagnostic what it saw and what it cannot see.
#
# The target has two peaks: sequences of ten bits with few ones, and with many.

# %%
import os
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import optax

import infer_align as ia
from infer_align import LogWeights, diagnostics, divergences, estimators, exact
from infer_align.jax import assess, fit, hidden_markov, memoryless

FAST = bool(os.environ.get("INFER_ALIGN_FAST"))
STEPS, N = (100, 128) if FAST else (300, 256)
DRAWS, BETA = 1000, 0.12

model = runpy.run_path(str(Path(__file__).parents[1] / "models" / "two_peaks.py"))
space, LENGTH = model["space"](), model["LENGTH"]
prior = dist.BernoulliProbs(model["PRIOR_ONE"]).expand([LENGTH]).to_event(1)
goal = ia.tilt(prior, model["reward"], beta=BETA)  # colder than the catalogue's, peaks far apart


def exactly(distribution):
    """Log-probabilities of all outcomes in float64."""
    log_prob = np.asarray(distribution.log_prob(space.outcomes), dtype=float)
    return log_prob - np.logaddexp.reduce(log_prob)


log_prior = exactly(prior)
outcomes = np.asarray(space.outcomes)
ones = outcomes.sum(-1)
reward = np.abs(ones - model["CENTRE"]) / model["CENTRE"]
log_density = log_prior + reward / BETA
log_z = float(np.logaddexp.reduce(log_density))
log_p = log_density - log_z
right = ones > model["CENTRE"]
print(
    f"{len(space)} outcomes, log Z = {log_z:.4f}, {np.exp(log_p[right]).sum():.0%} of the mass "
    "in the right peak"
)

# %% [markdown]
# ## Two fits
#
# The first policy draws ten independent bits: it can sit on one peak, or between them. Fitted by
# REINFORCE, which descends KL(π‖p), from a start that leans to the right, it collapses onto the
# right peak. The second is a hidden Markov model of two states, which can choose a peak first;
# it starts with one state for each, and descends KL(p‖π), which punishes what is missed. (From a
# start near the prior it collapses, too: no divergence helps against what is never drawn.)


# %%
def collapsing(params):
    return memoryless(jnp.stack([jnp.zeros_like(params), params]), length=LENGTH)


def able(params):
    return hidden_markov(params, length=LENGTH)


start = {
    "initial": jnp.zeros(2),
    "transition": jnp.array([[3.0, 0.0], [0.0, 3.0]]),
    "emission": jnp.array([[2.0, 0.0], [0.0, 2.0]]),
}
cases = {
    "collapsed": (collapsing, jnp.array(0.5), estimators.reinforce()),
    "good": (able, start, ia.f_dpg(divergences.forward_kl)),
}
policies = {}
for name, (policy, params, estimator) in cases.items():
    steps = fit(
        jax.random.key(1), policy, params, goal, estimator, n=N, steps=STEPS,
        optimizer=optax.adam(0.1),
    )  # fmt: skip
    *_, last = steps
    policies[name] = policy(last.params)

laws = {name: exactly(policy) for name, policy in policies.items()}
for name, log_policy in laws.items():
    reverse = float(divergences.reverse_kl(log_policy, log_p))
    forward = float(divergences.forward_kl(log_policy, log_p))
    print(f"{name:10s} exact KL(π‖p) {reverse:.3f}, exact KL(p‖π) {forward:.3f}")

# %% [markdown]
# ## What an assessment of its own draws says
#
# Nobody knows the exact values of a real model. `assess` draws from each policy and estimates them.

# %%
features = {"ones": lambda y: 1.0 * y.sum(-1), "first": lambda y: 1.0 * y[..., 0]}
trees = {
    name: assess(jax.random.key(2), policy, goal, n=DRAWS, features=features)
    for name, policy in policies.items()
}
print(diagnostics.table(trees["good"], before=trees["collapsed"]))

# %% [markdown]
# Read it as if the truth were unknown, and the collapsed policy (before) is the better one. Its log
# Ẑ misses the mass of the peak that was never drawn, so every divergence computed with it is too
# small, and its weights agree with each other: intervals are claimed, and wrong. **No number
# computed from a policy's own draws can see what it never draws.** The good policy is flagged
# instead: of its nearly equal weights a few stand out, k̂ sees a tail in them, and the ESS says that
# it does not matter. A flag is a reason to look, not a verdict.

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
for name, tree in trees.items():
    diagnostics.plot_weights(tree, axes[0], label=name)
diagnostics.plot_ranks(trees["good"], axes[1])
plt.show()

# %% [markdown]
# ## More draws see it, late
#
# With many more draws a few land in the other peak, with enormous weights: the ESS collapses and
# log Ẑ jumps. An ESS that falls as n grows is a warning; a good one from few draws is no proof. (k̂
# is −∞ where the largest weights tie, as they do here, where independent bits know eleven weights
# only: there is no tail to fit, and the ESS alone speaks.)

# %%
rng = np.random.default_rng(0)


def drawn(law, n):
    """Positions of n draws of a law of all outcomes."""
    return rng.choice(len(law), size=n, p=np.exp(law))


print(f"{'n':>9s}  {'collapsed: k-hat, ESS/n, log Z':>32s}  {'good: k-hat, ESS/n, log Z':>32s}")
for n in (1_000, 30_000, 1_000_000):
    cells = []
    for law in laws.values():
        y = drawn(law, n)
        log_w = (log_density - law)[y]
        khat, ess = diagnostics.pareto_khat(log_w), float(diagnostics.kish_ess(log_w)) / n
        cells.append(f"{khat:6.2f}, {ess:5.1%}, {np.logaddexp.reduce(log_w) - np.log(n):.3f}")
    print(f"{n:9d}  " + "  ".join(f"{cell:>32s}" for cell in cells))

# %% [markdown]
# ## log Z must not depend on the proposal
#
# The test that needs no luck: estimate log Z from other proposals (`assess(..., proposal=...)`, or
# a sampler of `infer_align.samplers`). The prior covers all of the target, but is far from it; a
# target at twice the temperature is a better bridge (on a real model: a policy fitted to that). A
# policy that misses a part disagrees with both, by the log of the mass that it reaches.

# %%
gentler = log_prior + reward / (2 * BETA)
proposals = {
    "prior": log_prior,
    "twice the temperature": gentler - np.logaddexp.reduce(gentler),
    "collapsed": laws["collapsed"],
    "good": laws["good"],
}
assessed = {}
for name, law in proposals.items():
    y = drawn(law, DRAWS if name in laws else 20_000)
    assessed[name] = diagnostics.assess(LogWeights(law[y], log_density[y]), divergences=())
seen = {name: diagnostics.estimates(tree)["log_z"] for name, tree in assessed.items()}

figure, axis = plt.subplots(figsize=(6.5, 2.4), layout="constrained")
for place, e in enumerate(seen.values()):
    axis.errorbar(
        e.value, -place, xerr=[[e.value - e.low], [e.high - e.value]], fmt="o", capsize=3,
        color="#3b7dd8", markerfacecolor="#3b7dd8" if e.reliable else "none",
    )  # fmt: skip
axis.axvline(log_z, color="black", ls=":", lw=1)
axis.set_yticks(-np.arange(len(seen)), list(seen))
axis.set_xlabel("log Ẑ, nats; dotted: exact; hollow: interval not claimed")
plt.show()
for name in ("collapsed", "good"):
    test = diagnostics.log_z_agreement(assessed[name], assessed["twice the temperature"])
    print(
        f"{name} against twice the temperature: {float(test['difference'][0]):+.3f} nats, "
        f"z = {float(test['z'][0]):+.1f}"
    )
print(f"log of the mass in the right peak: {np.log(np.exp(log_p[right]).sum()):+.3f}")

# %% [markdown]
# ## Coverage, against what it could be
#
# Where outcomes can be listed, the share of the target that the draws reach is known exactly. It
# means little alone: a thousand draws of the target itself don't reach all of its outcomes. So each
# coverage stands beside that of draws of p. With modes given (here the two peaks), the question is
# sharper.

# %%
for name, log_policy in laws.items():
    found = diagnostics.expected_coverage(log_p, log_policy, DRAWS)
    peaks = diagnostics.expected_coverage(log_p, log_policy, 20, modes=right.astype(int))
    print(
        f"{name:10s} {DRAWS} draws reach {found.mass:.0%} of p (draws of p: "
        f"{found.mass_of_target:.0%}); 20 draws meet {peaks.modes:.0%} of the peaks "
        f"(draws of p: {peaks.modes_of_target:.0%})"
    )

# %% [markdown]
# ## Where in the sequence the policy left its prior
#
# KL(π‖prior) is a sum over positions of the KL between next-token laws, averaged over prefixes. The
# prior's bits are independent and the collapsed policy's too: equal steps. The good policy hardly
# moves at first, when it may still take either peak, and more once the prefix says which.


# %%
def next_token(log_prob):
    """Next-token log-probabilities, (N, T, 2), from the law of all sequences."""
    joint = np.exp(log_prob).reshape((2,) * LENGTH)
    out = np.empty((len(space), LENGTH, 2))
    for t in range(LENGTH):
        head = joint.sum(axis=tuple(range(t + 1, LENGTH)))
        given = head[tuple(outcomes[:, :t].T)].reshape(-1, 2)
        out[:, t] = np.log(given) - np.log(given.sum(-1, keepdims=True))
    return out


lengths = np.full(len(space), LENGTH)
reference = next_token(log_prior)
curves, entropies = {}, {}
for name, log_policy in laws.items():
    law = next_token(log_policy)
    kl = (np.exp(law) * (law - reference)).sum(-1)
    curves[name] = diagnostics.by_position(kl, lengths, log_prob=log_policy)
    entropy = -(np.exp(law) * law).sum(-1)
    entropies[name] = diagnostics.by_position(entropy, lengths, log_prob=log_policy)
    whole = float(divergences.reverse_kl(log_policy, log_prior))
    assert abs(curves[name].total - whole) < 1e-6

figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
for axis, found, unit in ((axes[0], curves, "KL to the prior"), (axes[1], entropies, "entropy")):
    for (name, curve), colour in zip(found.items(), ("#3b7dd8", "#d9822b"), strict=True):
        axis.plot(np.arange(1, LENGTH + 1), curve.per_token, "o-", ms=4, color=colour, label=name)
    axis.set(xlabel="position", ylabel=f"{unit}, nats per token", ylim=(0, None))
    axis.legend(frameon=False)
plt.show()

# %% [markdown]
# ## The frontier
#
# The most reward that a KL can buy is an exact curve here. A collapse pays KL for nothing, since
# the other peak would have given reward, too: it lies below the curve, the good policy on it. Where
# no curve is known, policies can still be compared with each other.

# %%
law = exact.RewardLaw.of_outcomes(reward, log_prior)
curve = exact.tilts.frontier(law, 4.5 * np.linspace(0, 1, 60) ** 2)  # steep where the KL is small
figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
points = diagnostics.frontier_points(trees, scale=BETA)
diagnostics.plot_frontier(points, axis, exact=curve, reward="E[reward]")
plt.show()
for point in points:
    best = exact.tilts.frontier(law, point.kl.value).reward
    print(f"{point.label:10s} reward {point.reward.value:.3f} of at most {best:.3f} for its KL")

# %% [markdown]
# ## What each diagnostic can and cannot see
#
# | diagnostic | sees | cannot see |
# |---|---|---|
# | reward, loss | that something was learnt | whether it is the target |
# | KLs, ESS, k̂ on own draws | misfit where the policy draws | mass that it never draws |
# | k̂ at growing n | a missed part, once a draw lands there | one beyond all draws |
# | log Ẑ across proposals | a missed part that another proposal covers | one that all miss |
# | ranks and pairs of features | in what the policy differs | features that nobody named |
# | mode coverage | collapse, exactly | anything where outcomes can't be listed |
# | KL and entropy by position | where the policy moved | whether it moved to the right place |
# | frontier | waste of KL | which policy of equal reward and KL it is |
#
# On a language model: `infer-align assess RUN --before` writes all of these into one page, and
# `infer-align sample RUN --method importance` (or `smc`) gives weighted samples of the target with
# a log Z to hold against that of the assessment.
