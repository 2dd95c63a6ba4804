# %% [markdown]
# # 6. Constraints, and generation with distributional control
#
# "Every text mentions the product" is a *pointwise* constraint: it holds for each outcome. "Half of
# the biographies are of women" is a *distributional* one: it holds for the law, and no single text
# meets or breaks it. Both have one answer, the law nearest to the model, in KL, that satisfies
# them: the prior restricted, and the prior times exp(λ·φ) (GDC: Khalifa et al. 2021, arXiv
# 2012.11635). This tutorial declares both, finds λ with its error, and fits a policy.
#
# Everything runs on sequences short enough to list, so that each estimate meets the truth.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import optax

import infer_align as ia
from infer_align import Space, divergences, exact
from infer_align.jax import fit, markov
from infer_align.targets import unconstrained

FAST = bool(os.environ.get("INFER_ALIGN_FAST"))
STEPS, DRAWS = (60, 2000) if FAST else (600, 20_000)
jax.config.update("jax_enable_x64", True)  # noqa: FBT003

LENGTH = 4
INITIAL = jnp.array([0.6, 0.3, 0.1])
TRANSITION = jnp.array([[0.6, 0.3, 0.1], [0.4, 0.5, 0.1], [0.5, 0.3, 0.2]])
chain = {"initial": jnp.log(INITIAL), "transition": jnp.log(TRANSITION)}
prior = markov(chain, length=LENGTH)
space = Space.sequences(3, LENGTH, xp=jnp)

# %% [markdown]
# ## Pointwise: condition on what you want
#
# A hard constraint multiplies by 0 or 1, so log Z is the log of its probability, and KL(p‖prior)
# is what it costs.

# %%
has_c = lambda y: (y == 2).any(-1)
pointwise = ia.condition(prior, has_c)
answer = exact.solve(pointwise)
print(f"P(has c) = {np.exp(float(answer.log_z)):.4f}, cost {float(answer.kl_to_prior):.4f} nats")

# %% [markdown]
# ## Distributional: say the means
#
# Half of the sequences shall have a c, and the first letter shall be b 60% of the time. Features
# with desired means are a declaration; its density is not known before λ is, and asking for it
# says so.

# %%
starts_b = lambda y: y[..., 0] == 1
declared = ia.moment_match(prior, {"has c": (has_c, 0.5), "starts b": (starts_b, 0.6)})
try:
    declared.log_density(space.outcomes)
except ValueError as error:
    print(error)

# %%
solved = exact.match_moments(declared)
print("exact λ:", {name: round(value, 4) for name, value in solved.multipliers.items()})
print("reached:", {name: round(value, 6) for name, value in solved.achieved.items()})
print(f"KL(p‖prior) = {float(solved.kl_to_base):.4f} nats")

# %% [markdown]
# ## The same as a program, and on a sample
#
# Inside a program a moment is one more line. On a language model nothing can be listed: λ is then
# solved on weighted draws of the base, which are all that `solve_moments` needs. The features are
# evaluated once; λ and the true moments come with standard errors.


# %%
def program():
    y = numpyro.sample("y", markov(chain, length=LENGTH))
    ia.moment("has c", (y == 2).any(), 0.5)
    ia.moment("starts b", y[0] == 1, 0.6)


declared = ia.jax.target(program)
y = unconstrained(declared).given().sample(jax.random.key(0), (DRAWS,))
sample = ia.WeightedSample(y, np.zeros(DRAWS), np.zeros(DRAWS))
sampled = ia.solve_moments(declared, sample)
log_target = space.log_target(sampled.target)
for name, feature in {"has c": has_c, "starts b": starts_b}.items():
    truth = float(space.expectation(1.0 * feature(space.outcomes), log_target))
    print(
        f"{name:9s} λ = {sampled.multipliers[name]:.3f} ± {sampled.multiplier_errors[name]:.3f} "
        f"(exact {solved.multipliers[name]:.3f}); the solved target's true moment is "
        f"{truth:.4f}, within ± {sampled.standard_errors[name]:.4f} of what was wanted"
    )
print(f"{sampled.ess_pooled:.0f} effective draws of {DRAWS}; reliable: {sampled.reliable}")

# %% [markdown]
# ## What cannot be had is said
#
# A feature that never occurs, a mean at the end of its range, moments that contradict each other:
# λ would run to infinity. The refusal names the features.

# %%
impossible = {
    "never": {"is d": (lambda y: (y == 3).any(-1), 0.1)},
    "always": {"has c": (has_c, 1.0)},
    "contradiction": {
        "has c": (has_c, 0.5),
        "only a and b": (lambda y: ~has_c(y), 0.6),
        "starts b": (starts_b, 0.6),
    },
}
for moments in impossible.values():
    try:
        exact.match_moments(ia.moment_match(prior, moments))
    except ValueError as error:
        print("-", error)

# %% [markdown]
# ## Far from the prior: draw again
#
# Where the desired means are far away, few draws of the prior carry the weight. `match_moments`
# draws again, from what it has solved so far, and pools the rounds. Here the draws are exact;
# on a language model `draw` is a sampler, or a fitted policy with importance weights.

# %%
all_c = lambda y: (y == 2).sum(-1) / LENGTH
far = ia.moment_match(prior, {"share of c": (all_c, 0.5), "starts b": (starts_b, 0.4)})
rng = np.random.default_rng(0)


def draw(law, n):
    index = rng.choice(len(space), n, p=np.exp(np.asarray(space.log_target(law))))
    print(f"  drew {n}, with a share of c of {float(all_c(space.outcomes[index]).mean()):.3f}")
    return ia.WeightedSample(space.outcomes[index], np.zeros(n), np.zeros(n))


once = ia.match_moments(far, draw, n=500, rounds=1)
print(f"one round: ESS {once.ess_pooled:.0f}, reliable: {once.reliable}")
again = ia.match_moments(far, draw, n=500)
print(f"with more: ESS {again.ess_pooled:.0f}, reliable: {again.reliable}")
truth = exact.match_moments(far)
for name in truth.multipliers:
    print(
        f"  {name:10s} λ = {again.multipliers[name]:.3f} ± {again.multiplier_errors[name]:.3f}, "
        f"exactly {truth.multipliers[name]:.3f}"
    )

# %% [markdown]
# ## Fit a policy: DPG
#
# GDC trains the model towards the solved target by KL(p‖π), with samples of the policy: that is
# `f_dpg(forward_kl)`. The policy here is a Markov chain, as the prior is. The target is none (a c
# anywhere counts once), so some divergence must remain. KL(p‖π) is linear in log π, so its best
# chain has the target's own expected counts of first letters and of pairs: we can hold the fit
# against the optimum of the family.

# %%
policy = lambda params: markov(params, length=LENGTH)
log_target = space.log_target(solved.target)
forward = lambda params: float(
    space.divergence(divergences.forward_kl, space.log_prob(policy(params)), log_target)
)
moment_of = lambda params, feature: float(
    space.expectation(1.0 * feature(space.outcomes), space.log_prob(policy(params)))
)
curve, reached = [forward(chain)], [moment_of(chain, has_c)]
for step in fit(
    jax.random.key(1), policy, chain, solved.target, ia.f_dpg(divergences.forward_kl),
    n=256, steps=STEPS, optimizer=optax.adam(0.02),
):  # fmt: skip
    if step.index % 10 == 9:
        curve.append(forward(step.params))
        reached.append(moment_of(step.params, has_c))

p = np.exp(np.asarray(log_target))
tokens = np.asarray(space.outcomes)
first = np.array([p[tokens[:, 0] == a].sum() for a in range(3)])
pairs = sum(
    np.array([[p[(tokens[:, t - 1] == a) & (tokens[:, t] == b)].sum() for b in range(3)]
              for a in range(3)])
    for t in range(1, LENGTH)
)  # fmt: skip
best = {
    "initial": jnp.log(first),
    "transition": jnp.log(pairs / pairs.sum(axis=1, keepdims=True)),
}
print(f"KL(p‖π): {curve[0]:.4f} -> {curve[-1]:.4f}; the best chain has {forward(best):.4f}")
for name, feature in {"has c": has_c, "starts b": starts_b}.items():
    print(
        f"{name:9s} prior {moment_of(chain, feature):.3f}, fitted "
        f"{moment_of(step.params, feature):.3f}, best chain {moment_of(best, feature):.3f}"
    )

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
steps = range(0, 10 * len(curve), 10)
left.semilogy(steps, curve, label="f_dpg(forward_kl)")
left.axhline(forward(best), color="black", ls=":", label="the best chain")
left.set(xlabel="step", ylabel="exact KL(p‖π) in nats")
left.legend(frameon=False)
right.plot(steps, reached, label="P(has c) of the policy")
right.axhline(0.5, color="black", ls=":", label="declared")
right.set(xlabel="step", ylabel="moment")
right.legend(frameon=False)
plt.show()

# %% [markdown]
# ## By a KL budget
#
# A third way to say how much: the most reward that a given KL buys. `exact.kl_budget` and
# `kl_budget` (on a sample, with standard errors) find the temperature.

# %%
reward = lambda y: 1.0 * (y == 2).sum(-1)
budget = exact.kl_budget(prior, reward, 0.5)
estimate = ia.kl_budget(prior, reward, 0.5, sample)
print(f"exactly beta = {budget.beta:.4f}, E[reward] = {budget.reward:.4f}")
print(f"on {DRAWS} draws beta = {estimate.beta:.4f} ± {estimate.beta_se:.4f}, "
      f"true KL 0.5 ± {estimate.kl_se:.4f}")  # fmt: skip
