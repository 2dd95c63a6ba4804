# %% [markdown]
# # 3. Exact analysis: reward, KL and best-of-n
#
# How much reward does a nat of KL buy? Is best-of-n as good as the optimum? What happens to the
# reward that you really wanted? On small models these questions have exact answers, without a
# sample: this tutorial computes them for sequences of up to 100,000 tokens, and shows where
# common beliefs hold, and where they stop.
#
# Throughout, the *tilt* prior·exp(reward/beta)/Z is the KL-regularised optimum at temperature beta.

# %%
import math
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

import infer_align as ia
from infer_align import divergences, exact
from infer_align.exact import asymptotics, overoptimization, regularized, selection, tilts

FAST = bool(os.environ.get("INFER_ALIGN_FAST"))
LONG = 1_000 if FAST else 100_000
jax.config.update("jax_enable_x64", True)  # noqa: FBT003

# %% [markdown]
# ## A declared target, solved
#
# A language model of independent letters writes 40 of them; the reward counts the c's. There are
# 3^40 outcomes. `exact.solve` finds the structure of the declaration (here: nothing depends on the
# order of letters, so count vectors suffice), says which engine it took and what it checked.

# %%
PRIOR = jnp.array([0.5, 0.3, 0.2])


def program():
    y = numpyro.sample("y", dist.Categorical(PRIOR).expand([40]).to_event(1))
    numpyro.factor("reward", jnp.sum(y == 2) / 2.0)  # reward/beta


answer = exact.solve(program)
print(answer.engine, "-", answer.reason)
print(f"log Z {answer.log_z:.4f}, E[reward] {2 * answer.expected_log_potential:.4f}, ", end="")
print(f"KL to the prior {answer.kl_to_prior:.4f}")

# %% [markdown]
# ## The law of the reward
#
# Tilts, best-of-n and all other policies that look at the reward alone need only its law under the
# prior: the levels, and their probabilities. Ties are exact: rewards are decimals as written. A
# policy is then the vector of its log-masses over the levels.

# %%
law = exact.potential_law(program, scale=2.0)
print(law)
tilt = law.tilt(beta=2.0)
best = exact.best_of_n(law, 16)
for name, policy in (("prior", law.log_prob), ("tilt", tilt), ("best of 16", best)):
    print(
        f"{name:12s} E[reward] {law.expected_reward(policy):7.4f}   "
        f"KL to prior {law.kl_to_prior(policy):.4f}   win rate {law.win_rate(policy):.4f}"
    )

# %%
figure, axis = plt.subplots(figsize=(6.2, 3.4), layout="constrained")
same_kl = law.tilt(tilts.beta_for_kl(law, float(law.kl_to_prior(best))))
for name, policy in (
    ("prior", law.log_prob), ("best of 16", best), ("tilt of the same KL", same_kl),
):  # fmt: skip
    axis.plot(law.rewards, np.exp(policy), ".-", label=name)
axis.set(xlabel="reward (number of c's)", ylabel="probability", xlim=(0, 25))
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# ## What a nat buys
#
# The frontier R(KL) is concave, and its slope is beta: temperature is the marginal price of reward
# in nats. Best-of-n costs at most log n − 1 + 1/n nats, less where rewards tie, and lies below.

# %%
budgets = np.linspace(0, 8, 81)
curve = tilts.frontier(law, budgets)
figure, axis = plt.subplots(figsize=(6.2, 3.6), layout="constrained")
axis.plot(curve.kl, curve.reward, "k", label="tilts: the frontier")
axis.plot(budgets, tilts.small_kl_expansion(law, budgets), "k:", lw=1, label="small-KL expansion")
for n in (1, 2, 4, 16, 64, 256, 1024, 4096):
    policy = exact.best_of_n(law, n)
    point = law.kl_to_prior(policy), law.expected_reward(policy)
    axis.plot(*point, "o", color="tab:orange", label="best of n" if n == 1 else None)
    axis.annotate(f"{n}", point, textcoords="offset points", xytext=(4, -11), fontsize=8)
axis.set(xlabel="KL to the prior (nats)", ylabel="E[reward]", ylim=(7, 24))
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# How close is close? An identity answers: KL(π‖tilt) is what π overspends in KL, plus what it falls
# short in reward, divided by beta.

# %%
kl = float(law.kl_to_prior(best))
gap = tilts.closeness(law, best, kl)
print(f"KL(best of 16‖tilt) = {gap.kl_to_tilt:.4f} = ", end="")
print(f"{gap.kl_excess:.4f} (KL) + {gap.reward_shortfall:.4f} (reward)")

# %% [markdown]
# ## Long sequences
#
# With n = exp(mδ), best-of-n of m letters gets the reward *per letter* of the tilt of budget δ, and
# KL(best-of-n‖tilt)/m vanishes (Yang et al. 2024). Equivalence is per letter, though: the total KL
# grows like ½ log m, and the total variation tends to 1. All exact; n has up to 8,686 digits.

# %%
lengths, delta = [m for m in (1, 10, 100, 1_000, 10_000, 100_000) if m <= LONG], 0.2
letter = exact.reward_law([0.5, 0.3, 0.2], [0, 1, 2])
limit = tilts.frontier(letter, delta)
beta, rows = limit.beta, []
for m in lengths:
    long = exact.reward_law([0.5, 0.3, 0.2], [0, 1, 2], m)
    policy, optimum = exact.best_of_n(long, log_n=m * delta), long.tilt(beta)
    rows.append(
        (
            long.expected_reward(policy) / m,
            float(long.divergence(divergences.reverse_kl, policy, optimum)),
            float(long.divergence(divergences.total_variation, policy, optimum)),
        )
    )
    print(f"m = {m:7d}: E[reward]/m {rows[-1][0]:.5f} (limit {limit.reward:.5f}), ", end="")
    print(f"KL {rows[-1][1]:.4f}, per letter {rows[-1][1] / m:.6f}, TV {rows[-1][2]:.3f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 3.4), layout="constrained")
total = np.array([row[1] for row in rows])
left.loglog(lengths, total / np.array(lengths), "o-", label="per letter")
left.loglog(lengths, total, "s:", label="total")
left.loglog(lengths, [row[2] for row in rows], "^--", label="total variation")
left.set(xlabel="letters m", title="best-of-n against the tilt")
left.legend(frameon=False)
grid = np.linspace(0, 2, 201)
right.plot(grid, [asymptotics.rate(letter, x) for x in grid], "k", label="prior")
right.plot(grid, [asymptotics.rate(letter, x, beta=beta) for x in grid], label="tilt")
bon = [asymptotics.rate_of_best_of_n(letter, x, delta) for x in grid]
right.plot(grid, bon, "--", label="best-of-n (infinite below)")
right.set(xlabel="reward per letter", title="rate functions", ylim=(-0.02, 1.6))
right.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Other divergences
#
# Regularise with another divergence and another policy is optimal. On the axes of reward and KL
# none can beat the tilt; how far below each stays shows what it pays for. Pearson's χ² cuts low
# rewards off; total variation moves all it can from the worst outcomes to the very best.

# %%
few = exact.reward_law([0.5, 0.3, 0.2], [0, 1, 2], 10)
figure, axis = plt.subplots(figsize=(6.2, 3.6), layout="constrained")
curve = tilts.frontier(few, np.linspace(0, 3, 61))
axis.plot(curve.kl, curve.reward, "k", label="reverse KL: the frontier")
for divergence in (
    divergences.pearson_chi2, divergences.jensen_shannon, divergences.squared_hellinger,
    divergences.forward_kl, divergences.total_variation,
):  # fmt: skip
    betas = np.geomspace(0.02, 100, 20 if FAST else 60)
    points = [regularized.optimum(few, divergence, beta) for beta in betas]
    points = [p for p in points if p.kl <= 3]
    axis.plot([p.kl for p in points], [p.reward for p in points], label=divergence.name)
    worst = max(abs(p.dual - (p.reward - p.beta * p.divergence)) for p in points)
    print(f"{divergence.name:18s} largest duality gap {worst:.1e}")
axis.set(xlabel="KL to the prior (nats)", ylabel="E[reward]")
axis.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## Over-optimisation, exactly
#
# A proxy rewards b's and c's; what is really wanted (gold) likes b's, and c's only a little. Along
# the tilts dE[gold]/d(1/beta) is the covariance of gold and proxy: gold peaks where it vanishes.
# Gao et al.'s form for best-of-n, d(α − βd) with d = √KL, is what the first cumulants give.

# %%
PROXY, GOLD = [0, 1, 2], [0, 1, 0.2]
many = exact.reward_law([0.5, 0.3, 0.2], PROXY, 20)
peak = overoptimization.peak(many, GOLD)
form = overoptimization.small_kl_form(many, GOLD)
kls = np.linspace(0, 20, 81)
along = [many.tilt(tilts.beta_for_kl(many, float(x))) for x in kls]
gold = np.array([overoptimization.expected_gold(many, GOLD, policy) for policy in along])
draws = np.geomspace(1, 1e6, 25)
chosen = [exact.best_of_n(many, float(n)) for n in draws]
print(f"gold peaks at {peak.gold:.3f}, beta {peak.beta:.3f}, KL {peak.kl:.2f}")
fit = overoptimization.fit_form(
    [many.kl_to_prior(policy) for policy in chosen],
    [overoptimization.expected_gold(many, GOLD, policy) for policy in chosen],
    overoptimization.best_of_n_form,
    start=form.start,
)
print(f"best-of-n: fitted alpha {fit.alpha:.3f}, beta {fit.beta:.3f}; ", end="")
print(f"from cumulants {form.alpha:.3f}, {form.beta:.3f}")

# %% [markdown]
# Three flawed rewards are an ensemble; one of them is the proxy. The worst case and the mean less a
# variance are rewards like any other (`ia.worst_case` and `ia.uncertainty_weighted` make them for
# `ia.tilt`), and their laws go on the same axes.

# %%
ENSEMBLE = [np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.2, -0.2]), np.array([0.2, 0.8, 0.4])]
members = [lambda counts, r=r: counts @ r for r in ENSEMBLE]
ensembles = {
    "mean of three": lambda counts: counts @ np.mean(ENSEMBLE, axis=0),
    "worst case": ia.worst_case(*members),
    "mean − 0.1·variance": ia.uncertainty_weighted(*members, weight=0.1),
}
figure, axis = plt.subplots(figsize=(6.2, 3.6), layout="constrained")
axis.plot(np.sqrt(kls), gold, "k", label="tilts by the proxy")
axis.plot(
    [math.sqrt(max(many.kl_to_prior(policy), 0)) for policy in chosen],
    [overoptimization.expected_gold(many, GOLD, policy) for policy in chosen],
    "o", color="tab:orange", ms=3, label="best of n by the proxy",
)  # fmt: skip
for name, reward in ensembles.items():
    by = exact.reward_law_of_counts([0.5, 0.3, 0.2], reward, 20)
    policies = [by.tilt(tilts.beta_for_kl(by, float(x))) for x in kls]
    values = [overoptimization.expected_gold(by, GOLD, policy) for policy in policies]
    axis.plot(np.sqrt(kls), values, "--", label=f"tilts by the {name}")
axis.set(xlabel="√KL", ylabel="E[gold]")
axis.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## Memory and constraints
#
# Markov models and automata are solved by messages. Here, a chain must write the word "cab": an
# automaton says so, and the product is solved for a thousand tokens. Its transitions look ahead.

# %%
CHAIN = ([0.5, 0.25, 0.25], [[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]])
word = exact.Automaton([[0, 0, 1], [2, 0, 1], [0, 3, 1], [3, 3, 3]], [False, False, False, True])
for m in (3, 10, 100):
    chain = exact.Chain(*CHAIN, [0, 1, 2], m).constrain(word)
    print(f'm = {m:3d}: P("cab" occurs) = {math.exp(chain.log_accept):.6f}, ', end="")
    print(f"E[reward]/m at beta 2, given that it does: {chain.solve(2.0).expected_reward / m:.4f}")

rate = exact.Chain(*CHAIN, [0, 1, 2], 1).rate()
print(f"per token, in the limit: beta {tilts.beta_for_kl(rate, 0.1):.6f} at KL rate 0.1")

# %% [markdown]
# What would best-of-n say next? It is autoregressive, like everything: a look-ahead reweighting.

# %%
short = exact.reward_law([0.5, 0.3, 0.2], [0, 1, 2], 12)
policy = selection.autoregressive(short, exact.best_of_n(short, 64))
for prefix in ([], [2] * 6, [0] * 6):
    print(f"after {''.join('abc'[t] for t in prefix) or 'nothing':8s}", end="")
    print(np.exp(policy.next_log_prob(prefix)).round(3))

# %% [markdown]
# ## Gradients
#
# With JAX arrays the law is differentiable, and so is all that is computed from it: an exact
# objective can be optimised directly. Here, letter logits that maximise the expected *best of 8*
# less beta·KL to the old prior, beside those that maximise the plain expected reward. Knowing that
# the best of 8 will be taken, the policy keeps more of its spread.

# %%
REWARD, LENGTH, PRICE = [0.0, 1.0, 3.0], 10, 2.0
old = jnp.log(PRIOR)


def objective(logits, log_n):
    log_p = jax.nn.log_softmax(logits)
    law = exact.reward_law(jnp.exp(log_p), REWARD, LENGTH)
    cost = LENGTH * jnp.sum(jnp.exp(log_p) * (log_p - old))
    return law.expected_reward(exact.best_of_n(law, log_n=log_n)) - PRICE * cost


ascend = jax.jit(jax.value_and_grad(objective))
for n in (1.0, 8.0):
    logits, values = old, []
    for _ in range(200):
        value, slope = ascend(logits, math.log(n))
        logits, values = logits + 0.05 * slope, [*values, value]
    print(f"for the best of {n:g}: letters {np.asarray(jax.nn.softmax(logits)).round(3)}, ", end="")
    print(f"objective {values[0]:.3f} -> {values[-1]:.3f}")

# %% [markdown]
# From the shell: `infer-align exact TARGET.py`, or
#
#     infer-align exact --memoryless --p 0.5,0.3,0.2 --r=0,1,2 --m 1,10,100 --delta 0.05,0.2
#
# prints these tables and draws the pictures; `--json` has every number at full precision.
