# %% [markdown]
# # 1. Declare a target
#
# Alignment is inference: you do not write a loss, you declare *which distribution* the model
# should become. A target is a prior (the model you have) times the exponential of a potential
# (what you want of it), written as an ordinary probabilistic program.
#
# Here the language model is so small that every outcome can be listed, so that each answer is
# exact: 3 letters, 4 positions, 81 outcomes.

# %%
import math

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

import infer_align as ia
from infer_align import Space, divergences, estimators

jax.config.update("jax_enable_x64", True)  # noqa: FBT003  exact numbers; the library itself never sets it

LETTERS = jnp.array([0.5, 0.3, 0.2])
LENGTH, BETA = 4, 0.5


def reward(y):
    """The share of the rarest letter."""
    return jnp.mean(y == 2)


def program():
    """Prior: independent letters. Potential: reward / beta."""
    y = numpyro.sample("y", dist.Categorical(LETTERS).expand([LENGTH]).to_event(1))
    numpyro.factor("reward", reward(y) / BETA)


# %% [markdown]
# `beta` is a temperature, as in prior · exp(reward / beta): the distribution that maximises
# E[reward] − beta · KL(π‖prior). `ia.jax.target` reads the program; `Space` lists the
# outcomes and solves it.

# %%
target = ia.jax.target(program)
space = Space.sequences(3, LENGTH, xp=jnp)
answer = space.solve(target)
share = jax.vmap(reward)(space.outcomes)
prior = target.given().log_prob(space.outcomes)

print(f"{len(space.outcomes)} outcomes, log Z = {float(answer.log_z):.6f}")
print(
    f"E[reward]: prior {float(space.expectation(share, prior)):.4f}, "
    f"target {float(space.expectation(share, answer.log_prob)):.4f}"
)
print(f"KL(target‖prior) = {float(answer.kl_to_prior):.4f} nats")

# %% [markdown]
# The letters are independent, so log Z is also known in closed form: each of the four positions
# contributes log E[exp(1[letter = 2] / (4·beta))].

# %%
closed_form = LENGTH * math.log(0.8 + 0.2 * math.exp(1 / (LENGTH * BETA)))
assert abs(float(answer.log_z) - closed_form) < 1e-12

# %% [markdown]
# ## The same target without a program
#
# The combinators `tilt`, `condition` and `product` build the same object. Conditions are hard
# constraints: a potential of −inf, which is an ordinary value here.

# %%
letters = dist.Categorical(LETTERS).expand([LENGTH]).to_event(1)
share_of = jax.vmap(reward)
same = ia.tilt(letters, share_of, beta=BETA)
assert jnp.allclose(space.log_target(same), answer.log_prob)

no_first = ia.condition(same, lambda y: (y != 0).all(-1))  # and never the first letter
strict = space.solve(no_first)
accepted = int(jnp.isfinite(strict.log_prob).sum())
print(
    f"condition: {accepted} of {len(space.outcomes)} outcomes left, "
    f"log Z = {float(strict.log_z):.4f}"
)

# %% [markdown]
# ## How far is the prior from the target? It depends on who asks
#
# Directions are spelled out: `forward_kl` is KL(p‖π), `reverse_kl` is KL(π‖p), with p the target
# and π the policy. Under the hard constraint the prior puts mass where p = 0. Divergences with a
# finite f'(∞) can bear that; the others are infinite, and an estimator built on them refuses.

# %%
print(f"{'divergence':28s} {'tilt':>9s} {'with the constraint':>20s}")
for d in divergences.ALL:
    free, hard = (float(space.divergence(d, prior, t)) for t in (answer.log_prob, strict.log_prob))
    print(f"{d.name:28s} {free:9.4f} {hard:20.4f}")

# %%
y = letters.sample(jax.random.key(0), (64,))
weights = ia.LogWeights(letters.log_prob(y), no_first.log_density(y))
try:
    estimators.check(ia.f_dpg(divergences.reverse_kl), weights)
except ValueError as refusal:
    print(refusal)

# %% [markdown]
# ## Reward against KL
#
# Lower temperatures buy reward with KL. Every point below is exact.

# %%
betas = np.geomspace(0.03, 10, 60)
points = []
for beta in betas:
    tilted = space.solve(ia.tilt(letters, share_of, beta=float(beta)))
    points.append((float(tilted.kl_to_prior), float(space.expectation(share, tilted.log_prob))))
kl, expected = np.array(points).T

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.plot(kl, expected, lw=2)
left.plot(
    float(answer.kl_to_prior),
    float(space.expectation(share, answer.log_prob)),
    "o",
    label=f"beta = {BETA}",
)
left.set(xlabel="KL(target‖prior) in nats", ylabel="E[reward]", title="The exact frontier")
left.legend(frameon=False)
counts = np.asarray((space.outcomes == 2).sum(-1))
for name, log_p in (("prior", prior), ("target", answer.log_prob)):
    mass = [float(jnp.exp(log_p)[counts == k].sum()) for k in range(LENGTH + 1)]
    right.plot(range(LENGTH + 1), mass, "o-", label=name)
right.set(xlabel="number of the rare letter", ylabel="probability", title="What the tilt does")
right.legend(frameon=False)
plt.show()

# %% [markdown]
# ## From a declaration to a fit
#
# A policy is a NumPyro distribution with parameters. `fit` is a generator of steps, so the loop
# is yours. Here the policy is a table over all 81 outcomes, and each step is measured exactly.

# %%
policy = lambda logits: ia.jax.tabular(logits, space=space)
distance = []
for step in ia.jax.fit(
    jax.random.key(1), policy, prior, target, ia.f_dpg(divergences.jensen_shannon), n=64, steps=100
):
    log_policy = jax.nn.log_softmax(step.params)
    distance.append(
        float(space.divergence(divergences.jensen_shannon, log_policy, answer.log_prob))
    )
print(f"exact JS to the target: {distance[0]:.4f} at first, {distance[-1]:.4f} at the end")
assert distance[-1] < 0.5 * distance[0]

# %% [markdown]
# ## What to remember
#
# - Declare the distribution, not the loss: a program's `sample` sites are the prior, its
#   `factor` sites the potential.
# - `beta` is a temperature, > 0.
# - Hard constraints are −inf, and only divergences with finite f'(∞) go with them.
# - On a space that can be listed, everything has an exact answer; use it.
