# %% [markdown]
# # 4. Divergences and gradient estimators
#
# A variational fit makes two choices that are easily confused. The *divergence* decides where the
# fit ends. The *gradient estimator* decides how fast it gets there: estimators that are unbiased
# all lead to the same place, some of them much more slowly. In `infer_align.jax.programs` the
# choices are independent: an objective is a program, and each of its sample sites has an estimator
# of its own.
#
# Everything here is small enough to have exact answers, and every estimate is held against them.

# %%
import os
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax

from infer_align.jax import lab, programs
from infer_align.jax.programs import expectation, objectives

FAST = bool(os.environ.get("INFER_ALIGN_FAST"))
STEPS, DRAWS = (400, 200) if FAST else (2_000, 2_000)

# %% [markdown]
# ## Where a fit ends
#
# A posterior with two modes: z² was seen to be about 2, and the prior leans to the right. The guide
# is one normal, so no fit can be right, and the divergence decides how it is wrong.


# %%
def model():
    z = numpyro.sample("z", dist.Normal(0.4, 1.5))
    numpyro.sample("x", dist.Normal(z**2, 0.7), obs=2.0)


def guide(phi):
    numpyro.sample("z", dist.Normal(phi[0], jnp.exp(phi[1])))


grid = jnp.linspace(-4.0, 4.0, 2_001)
width = float(grid[1] - grid[0])
log_joint = jax.vmap(lambda z: programs.density(model, {"z": z}))(grid)
log_z = float(jax.nn.logsumexp(log_joint) + np.log(width))
log_posterior = log_joint - log_z
print(f"log p(x) = {log_z:.4f}, by quadrature")

# %% [markdown]
# Each objective is a line, and each runs inside `expectation`, which gives a function of a key and
# the parameters that `jax.grad` differentiates without bias. `fit` descends it.

# %%
OBJECTIVES = {
    "reverse KL (elbo)": lambda phi: -objectives.elbo(model, partial(guide, phi)),
    "Rényi bound, α = ½": lambda phi: (
        -objectives.renyi_bound(model, partial(guide, phi), alpha=0.5, n=8)
    ),
    "iwelbo, 8 particles": lambda phi: -objectives.iwelbo(model, partial(guide, phi), n=8),
    "Jeffreys": lambda phi: objectives.jeffreys(model, partial(guide, phi), n=32),
    "forward KL": lambda phi: objectives.forward_kl(model, partial(guide, phi), n=32),
}


def both_kls(phi):
    """KL(guide‖posterior) and KL(posterior‖guide), by quadrature."""
    log_q = dist.Normal(phi[0], jnp.exp(phi[1])).log_prob(grid)
    gap = log_q - log_posterior
    terms = jnp.exp(log_q) * gap, -jnp.exp(log_posterior) * gap
    return [float(jnp.sum(x) * width) for x in terms]


fitted, start = {}, jnp.array([1.0, 0.0])
print(f"{'':22s} {'loc':>7s} {'scale':>7s} {'KL(q‖p)':>9s} {'KL(p‖q)':>9s} {'sum':>7s}")
for name, objective in OBJECTIVES.items():
    *_, last = programs.fit(
        jax.random.key(0), expectation(objective), start, steps=STEPS, batch=64,
        optimizer=optax.adam(optax.exponential_decay(0.05, STEPS, 0.05)),
    )  # fmt: skip
    fitted[name] = last.params
    loc, scale = float(last.params[0]), float(jnp.exp(last.params[1]))
    reverse, forward = both_kls(last.params)
    print(f"{name:22s} {loc:7.3f} {scale:7.3f} {reverse:9.3f} {forward:9.3f} ", end="")
    print(f"{reverse + forward:7.3f}")

# %% [markdown]
# Each column is smallest where it was asked for. Reverse KL sits on one mode, and pays nothing for
# the other: it never looks there (started further left, it would take the other one). Forward KL
# covers both, and the valley too. Jeffreys' sum of the two is a compromise. The importance-weighted
# bounds lean to the covering side: their optimum is a good *proposal* for 8 particles, not a good
# approximation by itself.

# %%
figure, axis = plt.subplots(figsize=(6.6, 3.6), layout="constrained")
axis.fill_between(grid, jnp.exp(log_posterior), color="0.88", label="posterior")
for (name, phi), style in zip(fitted.items(), ("-", "--", "-.", ":", "-"), strict=True):
    density = jnp.exp(dist.Normal(phi[0], jnp.exp(phi[1])).log_prob(grid))
    axis.plot(grid, density, style, lw=1.6, label=name)
axis.set(xlabel="z", ylabel="density", xlim=(-3.5, 3.5), ylim=(0, None))
axis.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## How it gets there: discrete sites
#
# Six switches, each on with its own probability; their weighted sum should be near 2. The gradient
# with respect to six logits can be had in many ways. `lab.compare` draws each many times, and holds
# it against the exact gradient, which it finds itself (here: 2⁶ joint values).

# %%
WEIGHTS = jnp.array([1.0, 0.7, -0.4, 1.3, 0.2, 0.9])


def switches(logits):
    on = numpyro.sample("on", dist.Bernoulli(logits=logits).to_event(1))
    return (jnp.sum(WEIGHTS * on) - 2.0) ** 2 + 3.0


logits = jnp.linspace(-1.0, 1.0, 6)
CHOICES = {
    "score": programs.score,
    "score_running": programs.score_running(0.9),
    "score_loo(8)": programs.score_loo(8),
    "local_expectation": programs.local_expectation,
    "enumerate_": programs.enumerate_,
    "straight_through": programs.straight_through(1.0),
}
found = lab.compare(
    switches, {name: {"on": one} for name, one in CHOICES.items()}, logits,
    key=jax.random.key(1), n=DRAWS,
)  # fmt: skip
print(found)

# %% [markdown]
# How to read it. The *variance* is that of one gradient, summed over the six components; the last
# column multiplies it by the time of one gradient, since twice the time could be spent on twice the
# draws. `score` multiplies the score by the whole cost, the constant 3 included; a baseline removes
# that. `score_loo(8)` evaluates 8 times, so a factor of 8 in its gain is just averaging. Local
# expectations try the other value of each switch; enumeration tries everything, and has no variance
# left. `straight_through` is quiet, fast, and wrong: its interval excludes 0, and more draws only
# make it surer of that.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10.6, 3.8), layout="constrained")
found.plot(left)
found.plot_bias(right)
plt.show()

# %% [markdown]
# A biased estimator is no crime in a cost like this one. In a bound it would be: the number would
# still be called a bound, and not be one. So it is refused.


# %%
def coin():
    on = numpyro.sample("on", dist.Bernoulli(0.3))
    numpyro.sample("x", dist.Normal(on, 1.0), obs=0.8)


flip = lambda phi: numpyro.sample("on", dist.Bernoulli(logits=phi))
bound = lambda phi: objectives.elbo(coin, partial(flip, phi))
try:
    expectation(bound, {"on": programs.straight_through(1.0)})(jax.random.key(0), 0.2)
except ValueError as error:
    print(error)

# %% [markdown]
# ## Where a function jumps
#
# Reparameterisation differentiates along the path of a draw. A step has slope zero almost
# everywhere, so along every path the probability of passing a threshold looks constant. The score
# function and the measure-valued derivative do not look at slopes. In closed form the gradient is
# that of Φ((loc − 1)/scale).


# %%
def passes(phi):
    z = numpyro.sample("z", dist.Normal(phi[0], phi[1]))
    return jnp.where(z > 1.0, 1.0, 0.0) + 0.1 * z


point = jnp.array([0.3, 0.8])
exact = jax.grad(
    lambda phi: jax.scipy.special.ndtr((phi[0] - 1.0) / phi[1]) + 0.1 * phi[0]
)(point)  # fmt: skip
jumps = lab.compare(
    passes, {"reparam": {"z": programs.reparam}, "score": {"z": programs.score},
             "measure_valued": {"z": programs.measure_valued}},
    point, key=jax.random.key(2), n=DRAWS, exact=exact,
)  # fmt: skip
print(jumps)
print("exact", np.round(np.asarray(exact), 4), ", reparam gives", jumps["reparam"].mean.round(4))

# %% [markdown]
# Nothing in the output of `reparam` itself would tell: little variance, no NaN, and a gradient that
# is the smooth part's alone. If a program has a threshold downstream of a continuous site, choose
# another estimator for *that* site, and leave the others as they are.
#
# ## One estimator per site
#
# A mixture: which component (discrete), where in it (continuous). Sum over the one, differentiate
# through the other: the choice is by name, and `describe` says what was chosen.

# %%
SCALES = jnp.array([0.3, 1.0, 0.6])


def mixture():
    k = numpyro.sample("k", dist.Categorical(jnp.array([0.5, 0.3, 0.2])))
    z = numpyro.sample("z", dist.Normal(jnp.array([-1.0, 0.5, 2.0])[k], SCALES[k]))
    numpyro.sample("x", dist.Normal(z, 0.5), obs=1.2)


def posterior(phi):
    k = numpyro.sample("k", dist.Categorical(logits=phi["k"]))
    numpyro.sample("z", dist.Normal(phi["loc"][k], jnp.exp(phi["log_scale"])[k]))


phi = {
    "k": jnp.array([0.4, 0.0, -0.3]), "loc": jnp.array([0.0, 0.8, 1.4]),
    "log_scale": jnp.array([-1.0, -0.5, -0.7]),
}  # fmt: skip
negative = lambda phi: -objectives.elbo(mixture, partial(posterior, phi))
print(expectation(negative, {"k": programs.enumerate_}).describe(phi))
print()
MIXED = {
    "score both": {"k": programs.score, "z": programs.score},
    "score, reparam": {"k": programs.score},
    "score_loo(4), reparam": {"k": programs.score_loo(4)},
    "enumerate, reparam": {"k": programs.enumerate_},
}
mixed = lab.compare(negative, MIXED, phi, key=jax.random.key(3), n=DRAWS)
print(mixed)

# %% [markdown]
# ## Does it matter?
#
# All rows above are unbiased, and gradient descent averages. But what it averages is noise, and the
# learning rate has to be small enough for it. The same steps, the same optimiser, from the same
# start; on the vertical axis the exact distance of the ELBO to its optimum.

# %%
exact_loss = jax.jit(lambda phi: jnp.mean(jax.vmap(
    expectation(negative, {"k": programs.enumerate_}), (0, None)
)(jax.random.split(jax.random.key(9), 1_000), phi)))  # fmt: skip
every = max(1, STEPS // 40)
curves = {}
for name in ("score both", "score, reparam", "score_loo(4), reparam", "enumerate, reparam"):
    run = programs.fit(
        jax.random.key(4), expectation(negative, MIXED[name]), phi, steps=STEPS,
        optimizer=optax.adam(0.02),
    )  # fmt: skip
    curves[name] = [float(exact_loss(step.params)) for step in run if step.index % every == 0]
nodes = jnp.linspace(-6.0, 8.0, 4_001)
joint = jax.vmap(lambda k: jax.vmap(
    lambda z: programs.density(mixture, {"k": k, "z": z}))(nodes))(jnp.arange(3))  # fmt: skip
evidence = float(jax.nn.logsumexp(joint) + jnp.log(nodes[1] - nodes[0]))
figure, axis = plt.subplots(figsize=(6.6, 3.6), layout="constrained")
for (name, curve), style in zip(curves.items(), (":", "-.", "--", "-"), strict=True):
    axis.semilogy(np.arange(len(curve)) * every, np.array(curve) + evidence, style, label=name)
    print(f"{name:22s} log p(x) − ELBO: {curve[0] + evidence:.4f} -> {curve[-1] + evidence:.4f}")
axis.set(xlabel="step", ylabel="log p(x) − ELBO = KL(guide‖posterior)")
axis.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## In short
#
# | the site | first choice | and if that is too slow or impossible |
# |---|---|---|
# | continuous, smooth downstream | `reparam` (the default) | `score_loo` |
# | continuous, a jump downstream | `measure_valued` | `score_loo` |
# | discrete, few joint values | `enumerate_` | `local_expectation` |
# | discrete, many elements | `local_expectation` | `score_loo` |
# | discrete, endless support | `measure_valued` (Poisson), `score_loo` | `score_running` |
#
# and `lab.compare` on a small version of the program when in doubt. Tutorial 5 writes the
# objectives themselves.
