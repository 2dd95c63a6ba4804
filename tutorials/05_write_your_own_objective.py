# %% [markdown]
# # 5. Write your own objective
#
# An objective is a Python function that draws and returns a number. Two verbs suffice to write one:
# `simulate` runs a program and gives its values with their log-density; `density` gives the
# log-density at values that you bring. `expectation` makes value and gradient of it, both unbiased.
# All of `programs.objectives` is written this way, so nothing there is out of your reach.
#
# This tutorial writes the ELBO, a bound that the library doesn't have, and wake-sleep; then it uses
# `marginal` and `normalize`, which turn a program into one whose density can only be estimated,
# without any of those objectives noticing.

# %%
import math
import os
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax

from infer_align.jax import programs
from infer_align.jax.programs import density, expectation, objectives, particles, simulate

FAST = bool(os.environ.get("INFER_ALIGN_FAST"))
STEPS, DRAWS = (300, 500) if FAST else (3_000, 20_000)
COUNTS = (20,) if FAST else (1, 2, 5, 20, 100)


def mean(objective, *args, seed=0):
    """Mean of an objective over independent draws, and its standard error."""
    keys = jax.random.split(jax.random.key(seed), DRAWS)
    loss = expectation(objective)
    values = jax.jit(lambda keys: jax.lax.map(lambda key: loss(key, *args), keys, batch_size=500))(
        keys
    )
    return float(values.mean()), float(values.std() / math.sqrt(DRAWS))


# %% [markdown]
# ## The ELBO in two lines
#
# The cone: two coordinates, of which only the squared distance from the origin was seen. Its
# evidence is known from an integral in polar coordinates.


# %%
def cone():
    x = numpyro.sample("x", dist.Normal(0.0, 10.0))
    y = numpyro.sample("y", dist.Normal(0.0, 10.0))
    s = x * x + y * y
    numpyro.sample("z", dist.Normal(s, 0.1 + s / 100), obs=5.0)


def blob(phi):
    numpyro.sample("x", dist.Normal(phi[0], jnp.exp(phi[2])))
    numpyro.sample("y", dist.Normal(phi[1], jnp.exp(phi[3])))


def my_elbo(phi):
    sites, log_q = simulate(blob, phi)
    return density(cone, sites) - log_q


squares = np.linspace(1e-4, 60.0, 200_001)
scales = 0.1 + squares / 100
joint = -squares / 200 - math.log(200) - 0.5 * ((5 - squares) / scales) ** 2
joint -= np.log(scales * math.sqrt(2 * math.pi))
LOG_Z = float(np.logaddexp.reduce(joint) + math.log(squares[1] - squares[0]))

phi = jnp.array([2.2, 0.0, -3.2, -1.0])
key = jax.random.key(1)
mine = jax.value_and_grad(expectation(my_elbo), argnums=1)(key, phi)
library = jax.value_and_grad(
    expectation(lambda phi: objectives.elbo(cone, partial(blob, phi))), argnums=1
)(key, phi)  # fmt: skip
print("one draw, mine and the library's:", float(mine[0]), float(library[0]))
print("largest difference of their gradients:", float(jnp.abs(mine[1] - library[1]).max()))
print(f"log p(z = 5) = {LOG_Z:.4f}; ELBO {mean(my_elbo, phi)[0]:.3f}")

# %% [markdown]
# ## A bound of your own
#
# `particles(n, f)` repeats a part of an objective, each time with draws of its own. That is what
# bounds with several particles are made of. Here is one that the library does not have: the
# thermodynamic integral (Masrani, Le and Wood 2019). With w = p/q and q_β ∝ q·w^β between guide and
# posterior,
#
# log p(x) = ∫₀¹ E_{q_β}[log w] dβ,
#
# and the integrand rises, so that sums over a grid bound it: left ends from below, right ends from
# above. E_{q_β} is estimated with self-normalised weights: consistent as particles grow, not
# unbiased, so that both sums are bounds in the limit only.


# %%
def thermodynamic(phi, betas, ends, n):
    def log_weight():
        sites, log_q = simulate(blob, phi)
        return density(cone, sites) - log_q

    log_w = particles(n, log_weight)
    share = jax.nn.softmax(betas[:, None] * log_w, axis=1)  # (rungs, n)
    heights = share @ log_w
    widths = jnp.diff(betas)
    return jnp.sum(widths * (heights[:-1] if ends == "left" else heights[1:]))


rungs, sums = (1, 30) if FAST else (1, 2, 5, 10, 30), {"left": [], "right": []}
for count in rungs:
    betas = jnp.linspace(0.0, 1.0, count + 1) ** 3  # finer where the integrand rises fastest
    for ends, values in sums.items():
        f = lambda phi, ends=ends, betas=betas: thermodynamic(phi, betas, ends, 500)
        values.append(mean(f, phi)[0])
    print(f"{count:3d} rungs: left sum {sums['left'][-1]:8.3f}, right sum {sums['right'][-1]:7.3f}")
elbo, iwelbo = mean(my_elbo, phi)[0], mean(
    lambda phi: objectives.iwelbo(cone, partial(blob, phi), n=500), phi)[0]  # fmt: skip
print(f"one rung on the left is the ELBO, {elbo:.3f}; IWELBO with 500 particles {iwelbo:.3f}")

# %%
figure, axis = plt.subplots(figsize=(6.4, 3.5), layout="constrained")
axis.plot(rungs, sums["left"], "o-", label="left sums")
axis.plot(rungs, sums["right"], "s-", label="right sums")
axis.axhline(iwelbo, ls="--", color="0.5", label="IWELBO, same particles")
axis.axhline(LOG_Z, color="k", lw=1, label="log p(z = 5)")
axis.set(xscale="log", xlabel="rungs", ylabel="estimate", xticks=rungs)
axis.set_xticklabels(rungs)
axis.minorticks_off()
axis.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# The sums close in on each other, and on the importance-weighted bound, but below log p: hardly a
# draw of this guide reaches the far side of the ring, and no weight makes up for what was not
# drawn. The exact value shows it; the agreement of an upper and a lower estimate would not.
#
# ## Wake-sleep
#
# Some objectives are not expectations whose gradient is wanted whole. Wake-sleep learns a model by
# one loss and its guide by another, and no gradient may flow through what was drawn. `detach` is
# the same program, drawing without gradients; `jax.lax.stop_gradient` does it for numbers. Both
# losses fit into one objective, since each reaches its own parameters only.
#
# Thirty numbers x = z + noise, with z around an unknown centre. The guide is amortised: it sees x.
# The maximum of the likelihood is known, the mean of the data; so is the posterior.

# %%
DATA = 1.0 + 1.3 * jax.random.normal(jax.random.key(5), (30,))


def source(params, x):
    z = numpyro.sample("z", dist.Normal(params["centre"], 1.0))
    numpyro.sample("x", dist.Normal(z, 0.8), obs=x)


def reader(params, x):
    loc = params["slope"] * x + params["shift"]
    numpyro.sample("z", dist.Normal(loc, jnp.exp(params["log_scale"])))


def wake_wake(params, x, n=10):
    def one():
        sites, _ = simulate(programs.detach(reader), params, x)
        sites = jax.lax.stop_gradient(sites)
        return density(source, sites, params, x), density(reader, sites, params, x)

    log_p, log_q = particles(n, one)
    share = jax.nn.softmax(jax.lax.stop_gradient(log_p - log_q))
    # The model explains what was drawn; the guide learns to draw what the model likes. Each term
    # has gradients for its own parameters only.
    return -jnp.sum(share * log_p) - jnp.sum(share * log_q)


whole = lambda params: jnp.mean(programs.vmap(lambda x: wake_wake(params, x))(DATA))
start = {name: jnp.zeros(()) for name in ("centre", "slope", "shift", "log_scale")}
*_, last = programs.fit(
    jax.random.key(2), expectation(whole), start, steps=STEPS,
    optimizer=optax.adam(optax.exponential_decay(0.05, STEPS, 0.02)),
)  # fmt: skip
gain = 1 / (1 + 0.8**2)
exact = {
    "centre": float(DATA.mean()), "slope": gain, "shift": (1 - gain) * float(DATA.mean()),
    "log_scale": 0.5 * math.log(gain * 0.8**2),
}  # fmt: skip
for name, value in exact.items():
    print(f"{name:10s} learnt {float(last.params[name]):7.3f}   exact {value:7.3f}")

# %% [markdown]
# The library's `wake_model` and `wake_proposal` are these two terms, with draws of their own, and
# the gradients agree in the mean. `programs.vmap` repeated the objective over the data; plain
# `jax.vmap` would have drawn the same numbers for all, and is refused.


# %%
def from_library(params, x):
    return -objectives.wake_model(source, reader, params, x, n=10) - objectives.wake_proposal(
        source, reader, params, x, n=10
    )


def per_parameter(objective):
    keys = jax.random.split(jax.random.key(6), DRAWS)
    slopes = jax.vmap(jax.grad(expectation(objective), argnums=1), (0, None, None))
    found = jax.jit(slopes)(keys, start, DATA[0])
    return {name: (float(g.mean()), float(g.std()) / DRAWS**0.5) for name, g in found.items()}


ours, theirs = per_parameter(wake_wake), per_parameter(from_library)
for name, (value, error) in ours.items():
    print(f"{name:10s} {value:7.3f} ± {error:.3f}, library {theirs[name][0]:7.3f}")
try:
    expectation(lambda params: jnp.mean(jax.vmap(lambda x: wake_wake(params, x))(DATA)))(key, start)
except ValueError as error:
    print("\n" + str(error))

# %% [markdown]
# ## `marginal`: a guide with a variable that the model does not have
#
# The cone's posterior is a ring. A guide that draws an angle, then a point near the circle, has the
# right shape; but its density of the point is an integral over the angle. `marginal` estimates it
# with a proposal for the angle, in two ways, one for each side of an inequality:
#
# - `simulate` gives a weight w with E[1/w] = 1/q, so that log w is on average *above* log q;
# - `density` gives one with E[w] = q, so that log w is on average *below* log q.
#
# A lower bound needs the first of its guide and the second of its model, and gets them: `elbo`
# calls `simulate` on the one and `density` on the other, and that is all there is to hierarchical
# bounds. Two proposals: any angle, and one that looks at the point. (The exact conditional of the
# angle is a von Mises law of concentration √5·r/scale²; this one is four times too wide on purpose,
# since the exact one would leave nothing to see.)

# %%
LOG_SCALE = -3.0


def ring():
    angle = numpyro.sample("angle", dist.Uniform(-jnp.pi, jnp.pi))
    numpyro.sample("x", dist.Normal(jnp.sqrt(5.0) * jnp.cos(angle), jnp.exp(LOG_SCALE)))
    numpyro.sample("y", dist.Normal(jnp.sqrt(5.0) * jnp.sin(angle), jnp.exp(LOG_SCALE)))


def any_angle(kept):
    numpyro.sample("angle", dist.Uniform(-jnp.pi, jnp.pi))


def near(kept):
    radius = jnp.hypot(kept["x"], kept["y"])
    concentration = jnp.sqrt(5.0) * radius / jnp.exp(2 * LOG_SCALE) / 16
    numpyro.sample("angle", dist.VonMises(jnp.arctan2(kept["y"], kept["x"]), concentration))


turns = (jnp.arange(400) + 0.5) / 400 * 2 * jnp.pi - jnp.pi


def exact_log_q(sites):
    """The integral over the angle, by the midpoint rule."""
    each = jax.vmap(lambda angle: density(ring, sites | {"angle": angle}))(turns)
    return jax.nn.logsumexp(each) - jnp.log(len(turns) / (2 * jnp.pi))


def above(guide):
    sites, log_w = simulate(guide)
    return log_w - exact_log_q(sites)


def below(guide):
    full, _ = simulate(ring)
    sites = {name: full[name] for name in ("x", "y")}
    return density(guide, sites) - exact_log_q(sites)


gaps = {}
print(f"{'proposal':10s} {'n':>4s} {'simulate':>10s} {'density':>10s} {'hierarchical bound':>19s}")
for label, proposal in (("any angle", any_angle), ("near", near)):
    for n in COUNTS:
        guide = programs.marginal(ring, ["x", "y"], proposal, n=n)
        over, under = mean(partial(above, guide))[0], mean(partial(below, guide))[0]
        bound = mean(lambda guide=guide: objectives.elbo(cone, guide))[0]
        gaps[label, n] = over, under
        print(f"{label:10s} {n:4d} {over:10.3f} {under:10.3f} {bound:19.3f}")

# %% [markdown]
# The columns in the middle are log w − log q: one falls to 0, the other rises to it. The bound of
# log p rises as its guide's density is known better, up to the ELBO that the exact integral would
# give. The proposal that looks is worth many draws of the one that does not.


# %%
def integrated():
    full, _ = simulate(ring)
    sites = {name: full[name] for name in ("x", "y")}
    return density(cone, sites) - exact_log_q(sites)


print(f"ELBO by the integral {mean(integrated)[0]:.3f}; log p(z = 5) = {LOG_Z:.3f}")
figure, axis = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
for (label, marker), colour in zip(
    (("any angle", "o"), ("near", "s")), ("tab:orange", "tab:blue"), strict=True
):
    for side, style in ((0, "-"), (1, "--")):
        values = [gaps[label, n][side] for n in COUNTS]
        name = f"{label}: {('simulate', 'density')[side]}"
        axis.plot(COUNTS, values, style, marker=marker, color=colour, label=name)
axis.axhline(0.0, color="k", lw=1)
axis.set(xscale="log", xlabel="n, draws of the proposal", ylabel="log w − log q")
axis.set_yscale("symlog", linthresh=1.0)
axis.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## `normalize`: a posterior as a program
#
# `normalize(program, proposal, n=...)` draws n times and keeps one by its weight. The result has
# the same two verbs, so it may be a guide: then the ELBO of it is the importance-weighted bound,
# which is where that bound comes from.

# %%
wide = jnp.array([0.0, 0.0, 1.0, 1.0])
for n in COUNTS:
    resampled = programs.normalize(cone, partial(blob, wide), n=n)
    lower, error = mean(lambda guide=resampled: objectives.elbo(cone, guide))
    same, other = mean(
        lambda n=n: objectives.iwelbo(cone, partial(blob, wide), n=n), seed=1
    )  # fmt: skip
    print(f"n = {n:3d}: ELBO of the resampled guide {lower:8.3f} ± {error:.3f}, ", end="")
    print(f"IWELBO {same:8.3f} ± {other:.3f}")

# %%
shown = (1, 100) if FAST else (1, 10, 100)
figure, axes = plt.subplots(1, len(shown), figsize=(9.6, 3.3), layout="constrained", sharey=True)
for axis, n in zip(axes, shown, strict=True):
    resampled = programs.normalize(cone, partial(blob, wide), n=n)
    coordinate = lambda name, guide=resampled: expectation(lambda: simulate(guide)[0][name])
    keys = jax.random.split(jax.random.key(7), 1_000)
    x, y = (jax.jit(jax.vmap(coordinate(name)))(keys) for name in ("x", "y"))
    axis.plot(x, y, ".", ms=2, alpha=0.5)
    axis.set(title=f"one of {n}", xlabel="x", xlim=(-6, 6), ylim=(-6, 6), aspect="equal")
axes[0].set_ylabel("y")
plt.show()

# %% [markdown]
# A guide that knows nothing but a wide normal, and a posterior that is a ring: 100 draws find it.
# `objectives` combines these pieces into `hvi`, `iwhvi` and `diwhvi`; the folder
# `paper_repro/becker2024_programmable_vi` trains all of them on this cone and compares them with
# the published numbers.
