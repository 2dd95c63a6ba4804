# %% [markdown]
# # 2. Fit a small language model, and diagnose it
#
# A higher reward is not a better fit. This tutorial fits a small GPT-2 to a declared target,
# watches the exact distance, and shows a run whose reward rises while it moves away from the
# target: what reward curves hide, and what the diagnostics say.
#
# The model has random weights, 5 tokens and 4 positions: 341 outcomes, so every estimate can be
# held against the truth. The last section is the same program on a real model.

# %%
import os

import matplotlib.pyplot as plt
import pyro
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from infer_align import Space, diagnostics, divergences, f_dpg
from infer_align.torch import CausalLM, assess, fit, target

STEPS = 40 if os.environ.get("INFER_ALIGN_FAST") else 150
BETA, EOS = 0.5, 4

torch.set_num_threads(1)
torch.manual_seed(0)
config = GPT2Config(
    vocab_size=5, n_embd=32, n_layer=2, n_head=2, n_positions=8, bos_token_id=0, eos_token_id=EOS
)
lm = CausalLM(GPT2LMHeadModel(config), None, max_new_tokens=4)

# %% [markdown]
# ## The target: a plain Pyro program
#
# `lm()` is a Pyro distribution over continuations (of nothing here; `lm(prompts)` of prompts).
# Outcomes are token ids with a batch axis in front, so the potential reduces over the last axis.


# %%
def program():
    y = pyro.sample("y", lm())
    pyro.factor("ones", (y == 1).double().sum(-1) / BETA)


# %%
space = Space.sequences(5, 4, eos=EOS, pad=EOS, xp=torch)
goal = target(program)
with torch.no_grad():
    answer = space.solve(goal)
print(
    f"{len(space.outcomes)} outcomes, log Z = {answer.log_z:.4f}, "
    f"KL(target‖prior) = {answer.kl_to_prior:.4f}"
)


def exactly(policy, divergence):
    """The exact divergence of a policy to the target."""
    with torch.no_grad():
        log_policy = policy().log_prob(space.outcomes).double()
        return float(space.divergence(divergence, log_policy, answer.log_prob, tolerance=1e-4))


# %% [markdown]
# ## Fit it, three ways
#
# `lm.trainable()` is a copy to train; `lm.trainable(lora=8)` would share the network and train an
# adapter. Each estimator's fixed point is the target; what differs is the way there.

# %%
curves, policies = {}, {}
for divergence in (divergences.jensen_shannon, divergences.forward_kl, divergences.reverse_kl):
    policies[divergence.name] = policy = lm.trainable()
    curve = [exactly(policy, divergence)]
    for step in fit(policy, program, f_dpg(divergence), n=128, steps=STEPS, learning_rate=3e-3):
        if step.index % 5 == 4:
            curve.append(exactly(policy, divergence))
    curves[divergence.name] = curve
    print(f"{divergence.name:16s} exact {curve[0]:.4f} -> {curve[-1]:.4f}")

# %%
figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
for name, curve in curves.items():
    axis.semilogy(range(0, 5 * len(curve), 5), curve, label=name)
axis.set(xlabel="step", ylabel="exact divergence to the target (nats)")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Diagnose it without the answer
#
# On a real model there is no enumeration. `assess` draws from the policy and estimates log Z,
# the divergences in both directions and the features under policy and target, with intervals
# that it claims only where they hold (k̂ < 0.5 and an effective sample size of 200).

# %%
ones = {"ones": lambda y: (y == 1).double().sum(-1)}
before = assess(lm, program, n=1000, features=ones, seed=1)
after = assess(policies["jensen_shannon"], program, n=1000, features=ones, seed=2)
print(diagnostics.table(after, before=before))

# %%
estimate = diagnostics.estimates(after)["log_z"]
print(
    f"log Z: estimated {estimate.value:.4f} in [{estimate.low:.4f}, {estimate.high:.4f}], "
    f"exactly {answer.log_z:.4f}"
)

# %% [markdown]
# ## Higher reward, farther from the target
#
# A gentler target (beta = 2), where the prior is already near, and a careless fit: 8 samples a
# step and a high learning rate. The reward rises, above the target's own, and a reward curve
# would be content. KL(π‖p) tells that the policy ends farther from the target than it began.


# %%
def gentle():
    y = pyro.sample("y", lm())
    pyro.factor("ones", (y == 1).double().sum(-1) / 2.0)


with torch.no_grad():
    near = space.solve(target(gentle))


def from_gentle(policy):
    """The exact KL(π‖p) to the gentle target."""
    with torch.no_grad():
        log_policy = policy().log_prob(space.outcomes).double()
        return float(
            space.divergence(divergences.reverse_kl, log_policy, near.log_prob, tolerance=1e-4)
        )


careless, rewards, distances = lm.trainable(), [], []
for step in fit(
    careless,
    gentle,
    f_dpg(divergences.jensen_shannon),
    n=8,
    steps=40,
    learning_rate=0.03,
    max_grad_norm=None,
):
    rewards.append(step.metrics["log_potential"] * 2.0)
    distances.append(from_gentle(careless))
careful = lm.trainable()
for _ in fit(
    careful, gentle, f_dpg(divergences.jensen_shannon), n=128, steps=40, learning_rate=3e-3
):
    pass
at_target = float(space.expectation((space.outcomes == 1).double().sum(-1), near.log_prob))
print(
    f"E[reward] of the target {at_target:.2f}; of the careless fit's last batches "
    f"{sum(rewards[-10:]) / 10:.2f}"
)
print(
    f"exact KL(π‖p): before {from_gentle(lm):.3f}, careless {distances[-1]:.3f}, "
    f"careful {from_gentle(careful):.3f}"
)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
left.plot(rewards, label="careless fit")
left.axhline(at_target, color="black", ls=":", label="the target's")
left.set(xlabel="step", ylabel="E[reward]")
left.legend(frameon=False)
right.plot(distances)
right.axhline(from_gentle(lm), color="black", ls=":", label="before the fit")
right.set(xlabel="step", ylabel="exact KL(π‖p) in nats")
right.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Reuse of samples is exact
#
# A batch may serve several optimiser steps: the later ones are off-policy, and importance
# weights make the gradient right. `reuse=4` draws a quarter of the samples.

# %%
thrifty = lm.trainable()
for _ in fit(
    thrifty,
    program,
    f_dpg(divergences.jensen_shannon),
    n=128,
    steps=STEPS,
    learning_rate=3e-3,
    reuse=4,
):
    pass
print(f"a quarter of the samples: exact JS {exactly(thrifty, divergences.jensen_shannon):.4f}")

# %% [markdown]
# ## A real model
#
# The same lines on any Hugging Face causal language model, with a reward on its text:
#
#     lm = CausalLM.from_pretrained("gpt2", max_new_tokens=40)
#
#     def program(prompts):
#         y = pyro.sample("y", lm(prompts))
#         pyro.factor("sentiment", score(reward, y, lm, prompts) / 0.25)
#
#     policy = lm.trainable(lora=16)
#     for step in fit(policy, program, f_dpg(divergences.jensen_shannon),
#                     prompts=["The movie was"], n=48, steps=90, learning_rate=2e-4):
#         print(step.index, step.metrics["log_potential"], step.metrics["reverse_kl"])
#
# `infer-align demo` runs that on SmolLM2-135M and writes a report.
