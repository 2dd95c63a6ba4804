# %% [markdown]
# # 7. Sampling a target without training
#
# A declared target can be sampled as it stands, with no policy to fit. Every sampler returns the
# same record, a `WeightedSample`: outcomes, log-weights, an unbiased estimate of Z and what it cost
# in model calls. What differs is the price. This tutorial pays it for one rare constraint, for a
# target with two peaks and for a small GPT-2, where the answers are known.

# %%
import math
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from infer_align import condition, exact, samplers, tilt
from infer_align import jax as ij
from infer_align.jax.twists import fit_twist, linear_twist
from infer_align.torch import CausalLM
from infer_align.torch import source as torch_source

FAST = bool(os.environ.get("INFER_ALIGN_FAST"))
torch.set_num_threads(1)
prices = {}


def effective(sample):
    """Independent draws that a sample is worth: outcomes of one cluster count as one."""
    weights = np.asarray(sample.probabilities)
    if sample.cluster is not None:
        weights = np.bincount(sample.cluster.ravel(), weights.ravel())
    return 1 / (weights**2).sum() if weights.sum() > 0 else 0.0


def show(name, sample, log_z=None):
    draws = effective(sample)
    prices[name] = 1000 * draws / sample.calls
    truth = "" if log_z is None else f" (exact {log_z:.3f})"
    print(f"{name:34s} log Z {float(sample.log_z):8.3f}{truth}, {sample.calls:8,d} calls, ", end="")
    print(f"{draws:8.1f} effective draws")


# %% [markdown]
# ## One draw in twelve thousand
#
# A memoryless model writes 8 letters; at least 7 of them must be c. The constraint is declared, and
# `exact.solve` knows its probability, P = 8.4e-5.

# %%
letters = ij.memoryless(jnp.log(jnp.array([0.5, 0.3, 0.2])), length=8)
rare = condition(letters, lambda y: (y == 2).sum(-1) >= 7)
log_p = float(exact.solve(rare).log_z)
print(f"P = {math.exp(log_p):.3e}, one draw in {math.exp(-log_p):,.0f}")
source = ij.source(jax.random.key(0), rare)

# %% [markdown]
# **Rejection** draws from the prior until the constraint is met. Its draws are exact and
# independent, and each costs 1/P calls; **importance sampling** from the prior is the same thing
# here, since the weights are 0 or 1.

# %%
kept = samplers.rejection(source, 2 if FAST else 10, max_calls=300_000)
show("rejection", kept, log_p)

# %% [markdown]
# A better proposal makes importance sampling cheap: here the memoryless model closest to the
# target, which a fit would find (its P(c) is that of the target).

# %%
closer = ij.memoryless(jnp.log(jnp.array([0.0757, 0.0455, 0.8788])), length=8)
proposed = ij.source(jax.random.key(1), rare, closer)
show("importance, fitted proposal", samplers.importance(proposed, 500), log_p)

# %% [markdown]
# ## Sequential Monte Carlo
#
# A particle filter grows n outcomes together, token by token, and copies the promising ones. What
# is promising, a *twist* says: ψ(prefix), a guess of how much potential is still to come. Without a
# twist nothing is known before the last token, and the filter is importance sampling. A wrong twist
# costs accuracy, never correctness: the last weight is exact, and E[Ẑ] = Z.
#
# First a twist that anyone can write: another letter than c is bad, two of them are the end.


# %%
def few_others(prefix):
    others = (prefix != 2).sum(-1)[..., None] + (np.arange(3) != 2)
    return np.where(others > 1, -np.inf, -3.0 * others)


n = 500
show("SMC, rough twist", samplers.smc(source, n, twist=samplers.next_twist(few_others)), log_p)

# %% [markdown]
# The best twist is E[exp(potential) | prefix]. For enumerable and Markov targets
# `exact.lookahead` has it, and then every particle has the same weight: SMC draws exactly from the
# target, at one call to draw and one to score an outcome.

# %%
best = samplers.smc(source, n, twist=exact.lookahead(rare))
show("SMC, exact twist", best, log_p)
print(f"largest difference of log-weights: {np.ptp(best.log_weights):.1e}")

# %% [markdown]
# Between the two, a twist can be learnt, by contrast (Zhao et al. 2024): raise ψ on prefixes of the
# target's outcomes, lower it on prefixes that the twist itself draws. Here a table over how many
# other letters there are, started from the rough twist.

# %%
counts = linear_twist(lambda y: jax.nn.one_hot(jnp.minimum((y != 2).sum(-1), 2), 3), 3)
start = jnp.tile(jnp.array([0.0, -3.0, -20.0]), (8, 1))
steps = list(
    fit_twist(source, counts, start, n=200, steps=25 if FAST else 120, optimizer=optax.adam(0.1))
)
ess = [step.metrics["ess"] for step in steps]
print(f"ESS/n: {ess[0]:.2f} at first, {np.mean(ess[-10:]):.2f} at the end")
learnt = samplers.next_twist(lambda prefix: counts(steps[-1].params, prefix))
show("SMC, learnt twist", samplers.smc(source, n, twist=learnt), log_p)

# %% [markdown]
# ## Bounds from both sides
#
# log Ẑ of a filter is too low on average. Where one particle follows an exact draw of the target,
# it is too high: the truth lies between (bidirectional Monte Carlo). More particles, a smaller gap.

# %%
rough, repeats = samplers.next_twist(few_others), 400
# As many equal contexts: each is a replication, and all are filtered in the same calls.
logits = jnp.tile(jnp.log(jnp.array([0.5, 0.3, 0.2])), (repeats, 1))
many = condition(ij.memoryless(logits, length=8), lambda y: (y == 2).sum(-1) >= 7)
replicated, given = ij.source(jax.random.key(3), many), best.outcomes[None, :repeats]
for size in (2, 8, 32):
    low = samplers.smc(replicated, size, twist=rough).log_z
    high = samplers.conditional_smc(replicated, given, size, twist=rough)[0]
    low, high = (f"{np.mean(x):.4f} ± {np.std(x) / math.sqrt(repeats):.4f}" for x in (low, high))
    print(f"n = {size:2d}: from below {low}, from above {high} (exact {log_p:.4f})")

# %% [markdown]
# ## Markov chains, and a target with two peaks
#
# Metropolis-Hastings starts from accepted outcomes and moves on. Where the target has two peaks,
# single-letter moves hardly cross between them, while regenerating the rest of a sequence does. The
# share of the right peak shows it: each chain starts in a draw of the prior, which is mostly left.
# Bold moves get there in the end; a filter that looks ahead need not travel.

# %%
ones = ij.memoryless(jnp.log(jnp.array([0.6, 0.4])), length=10)
peaks = tilt(ones, lambda y: jnp.abs(y.sum(-1) - 4) / 4, beta=0.1)
answer = exact.solve(peaks)
right = np.asarray(answer.space.outcomes.sum(-1) > 4)
print(f"exact: {float(np.exp(np.asarray(answer.law))[right].sum()):.3f} of the mass is right")
chains, moves = (100, 30) if FAST else (500, 300)
bimodal = ij.source(jax.random.key(2), peaks)
for name, sample in (
    ("Metropolis, letters", samplers.local_metropolis(bimodal, chains, moves, substitution=1.0)),
    ("Metropolis, letters and ends", samplers.local_metropolis(bimodal, chains, moves)),
    ("independence Metropolis", samplers.independence_metropolis(bimodal, chains, moves)),
    ("SMC, exact twist", samplers.smc(bimodal, chains, twist=exact.lookahead(peaks))),
):
    share = float(sample.expectation(np.asarray(sample.outcomes).sum(-1) > 4))
    print(f"{name:30s} {share:.3f} right, {sample.calls:6,d} calls")

# %% [markdown]
# ## A language model
#
# The same samplers run on a `CausalLM`: particles share one key-value cache, which resampling
# reorders. This GPT-2 has random weights; it must write three c's among four letters.

# %%
torch.manual_seed(3)
config = GPT2Config(
    vocab_size=5, n_embd=16, n_layer=2, n_head=4, n_positions=8, bos_token_id=0, eos_token_id=4,
    initializer_range=0.4,
)  # fmt: skip
lm = CausalLM(GPT2LMHeadModel(config), None, max_new_tokens=4)
wanted = condition(lm(None), lambda y: (y == 3).sum(-1) >= 3)
log_w = float(exact.solve(wanted).log_z)
print(f"P = {math.exp(log_w):.2e}")
gpt2 = torch_source(wanted, seed=0)


def still_possible(prefix):
    seen = (prefix == 3).sum(-1)[..., None] + (torch.arange(5) == 3)
    missing = 3 - seen
    return torch.where(missing > 3 - prefix.shape[-1], -math.inf, -2.5 * missing.clamp(min=0))


show("GPT-2: importance", samplers.importance(gpt2, 3000), log_w)
guess = samplers.next_twist(still_possible)
show("GPT-2: SMC, rough twist", samplers.smc(gpt2, 500, twist=guess), log_w)
show("GPT-2: SMC, exact twist", samplers.smc(gpt2, 500, twist=exact.lookahead(wanted)), log_w)

# %% [markdown]
# ## The price
#
# Effective draws for a thousand model calls: what knowing the target's look-ahead is worth.

# %%
figure, axis = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
names = list(prices)
axis.barh(names, [max(prices[name], 1e-3) for name in names], color="tab:blue")
axis.invert_yaxis()
axis.set(xscale="log", xlabel="effective draws per 1000 model calls")
plt.show()
