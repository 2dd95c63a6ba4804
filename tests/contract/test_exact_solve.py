"""`solve` and its engines against the listing of all sequences, in NumPyro and in Pyro."""

import importlib.util
import itertools
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as numpyro_dist
import pyro
import pyro.distributions as pyro_dist
import pytest
import torch

import infer_align as ia
from infer_align import Target, condition, exact, product, tilt
from infer_align.exact import Automaton
from infer_align.jax import markov, memoryless
from infer_align.spaces import SequenceModel, Space

P = np.array([0.5, 0.3, 0.2])
M = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]])
LETTERS = np.array([1.0, -0.5, 0.3])
BIGRAMS = np.array([[0, 0.2, 1], [0.5, 0, -0.3], [-0.2, 0.7, 0]])
PLACES = np.random.default_rng(0).dirichlet(np.ones(3), size=4)
BONUS = np.random.default_rng(1).normal(size=(4, 3))
MODELS = Path(__file__).resolve().parents[2] / "models"
NUMBERS = ("log_z", "entropy", "expected_log_potential", "kl_to_prior")
SOME_ONE = Automaton([[0, 1, 0], [1, 1, 1]], [False, True])
EVEN_ZEROS = Automaton([[1, 0, 0], [0, 1, 1]], [True, False])
BY = {name: getattr(exact, f"by_{name}") for name in ("sequences", "types", "letters", "messages")}


def t64(x):
    return torch.tensor(np.asarray(x), dtype=torch.float64)


def iid(xp, probs=P, length=4):
    """Independent, identical tokens."""
    if xp is torch:
        return pyro_dist.Categorical(t64(probs)).expand([length]).to_event(1)
    return numpyro_dist.Categorical(jnp.asarray(probs)).expand([length]).to_event(1)


def letters(table=LETTERS):
    """An additive reward, of the library of the outcomes."""
    return lambda y: (t64(table) if isinstance(y, torch.Tensor) else jnp.asarray(table))[y].sum(-1)


def bigrams(y):
    return t64(BIGRAMS)[y[..., :-1], y[..., 1:]].sum(-1)


def no_bigram(a, b):
    return lambda y: ~((y[..., :-1] == a) & (y[..., 1:] == b)).any(-1)


def places():
    """Tokens and rewards that depend on the position."""
    bonus = t64(BONUS)
    prior = pyro_dist.Categorical(t64(PLACES)).to_event(1)
    return tilt(prior, lambda y: bonus[np.arange(4), y].sum(-1), 0.8)


def markov_prior(length=4, **more):
    logits = {"initial": jnp.log(jnp.asarray(P)), "transition": jnp.log(jnp.asarray(M))}
    return markov(logits, length=length, **more)


class TorchChain(pyro_dist.TorchDistribution):
    """The same in torch: any distribution that knows its sequence model is solved."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, length=4, eos=(), pad=0):
        self.length, self.eos, self.pad = length, eos, pad
        super().__init__((), (length,), validate_args=False)

    def sequence_model(self):
        first, step = t64(P).log(), t64(M).log()
        return SequenceModel(
            3, self.length, self.eos, self.pad, log_initial=first, log_transition=step
        )

    def log_prob(self, y):
        first, step = t64(P).log(), t64(M).log()
        end = sum((y == e for e in self.eos), torch.zeros_like(y)).cumsum(-1) > 0
        total = first[y[..., 0]]
        for t in range(1, self.length):
            x, z = (torch.where(end[..., t - 1], 0, y[..., s]) for s in (t - 1, t))
            total = total + torch.where(end[..., t - 1], 0.0, step[x, z])
        return total


def coins():
    """Bernoulli tokens, whose outcomes are floats in Pyro."""
    prior, weights = pyro_dist.Bernoulli(t64([0.2, 0.3, 0.6])).to_event(1), t64([1.0, -2.0, 0.5])
    return Target(prior, lambda y: (y.double() * weights).sum(-1))


def ends(prior):
    """A reward that counts the letters, the first one, and the padding."""
    reward = lambda y: letters()(y % 3) + 0.3 * (y[..., 0] == 1) + 0.1 * (y < 0).sum(-1)
    return tilt(prior, reward, 0.7)


JAX_IID, TORCH_IID = iid(jnp), iid(torch)


def pyro_program():
    y = pyro.sample("y", TORCH_IID)
    pyro.factor("reward", (y == 2).sum(-1) ** 2 / 5.0 - (y == 0).any(-1) * 1.0)
    chance = 0.3 + 0.1 * (y == 1).sum(-1).double()
    pyro.sample("seen", pyro_dist.Bernoulli(chance), obs=torch.ones(y.shape[:-1]).double())


ADDITIVE = tilt(TORCH_IID, letters(), 0.7)
ALL = ("types", "letters", "messages")
MESSAGES = ("messages",)
TARGETS = {
    "pyro, additive": (ADDITIVE, ALL),
    "one token": (tilt(iid(torch, length=1), letters(), 0.7), ALL),
    "a letter of probability 0": (tilt(iid(torch, [0.6, 0.0, 0.4]), letters(), 0.7), ALL),
    "a letter forbidden": (condition(ADDITIVE, lambda y: (y != 0).all(-1)), ALL),
    "a letter required": (condition(TORCH_IID, lambda y: (y == 2).any(-1)), ("types",)),
    "pyro program": (pyro_program, ("types",)),
    "position by position": (places(), ("letters", "messages")),
    "bigrams of a memoryless prior": (tilt(TORCH_IID, bigrams, 0.5), MESSAGES),
    "bigrams of a chain": (tilt(TorchChain(), bigrams, 0.5), MESSAGES),
    "a bigram forbidden": (condition(TORCH_IID, no_bigram(1, 2)), MESSAGES),
    "a bigram to the first letter forbidden": (condition(TORCH_IID, no_bigram(1, 0)), MESSAGES),
    "no letter twice in a row": (
        condition(tilt(TorchChain(), bigrams, 0.5), lambda y: (y[..., 1:] != y[..., :-1]).all(-1)),
        MESSAGES,
    ),
    "1 only before 2, which is not followed by 1": (
        condition(ADDITIVE, lambda y: no_bigram(1, 0)(y) & no_bigram(1, 1)(y) & no_bigram(2, 1)(y)),
        MESSAGES,
    ),
    "an end required": (
        condition(ends(TorchChain(eos=(2,))), lambda y: (y == 2).any(-1)), MESSAGES
    ),
    "an automaton": (product(ADDITIVE, SOME_ONE), MESSAGES),
    "two automata": (product(TorchChain(), SOME_ONE, letters(), EVEN_ZEROS), MESSAGES),
    "an automaton in numpyro": (product(JAX_IID, letters(), EVEN_ZEROS), MESSAGES),
    "only an automaton": (product(TORCH_IID, EVEN_ZEROS), ("types", "messages")),
    "eos": (ends(TorchChain(eos=(2,))), MESSAGES),
    "eos in numpyro": (ends(markov_prior(eos=2)), MESSAGES),
    "eos, padded with another letter": (ends(TorchChain(eos=(2,), pad=1)), MESSAGES),
    "eos, padded outside": (ends(TorchChain(eos=(2,), pad=-1)), MESSAGES),
    "two ends": (ends(TorchChain(eos=(0, 2), pad=1)), MESSAGES),
    "memoryless with eos": (
        ends(memoryless(jnp.log(jnp.asarray(P)), length=4, eos=2)), MESSAGES
    ),
    "one token, which is the end or not": (ends(TorchChain(length=1, eos=(2,))), MESSAGES),
    "eos and an automaton": (product(ends(TorchChain(eos=(2,))), EVEN_ZEROS), MESSAGES),
    "eos and an automaton that knows no padding": (
        product(TorchChain(eos=(2,), pad=-1), SOME_ONE), MESSAGES
    ),
    "coins": (coins(), ("letters", "messages")),
}  # fmt: skip
SLOW = ("an automaton in numpyro", "eos in numpyro")  # their compilation takes 10 s each


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        pytest.param(name, e, marks=[pytest.mark.slow] * (name in SLOW))
        for name, (_, engines) in TARGETS.items()
        for e in engines
    ],
)
def test_each_engine_gives_what_the_listing_gives(name, engine):
    target, listed = TARGETS[name][0], exact.by_sequences(TARGETS[name][0])
    answer = BY[engine](target)
    assert answer.engine == engine
    for number in NUMBERS:
        got, want = (float(getattr(a, number)) for a in (answer, listed))
        assert got == pytest.approx(want, abs=1e-10), number
    outcomes = listed.space.outcomes
    log_prob = np.asarray(answer.log_prob(outcomes))
    np.testing.assert_allclose(np.exp(log_prob), np.exp(np.asarray(listed.law)), atol=1e-12)
    assert np.exp(log_prob).sum() == pytest.approx(1.0, abs=1e-10)


def test_engines_that_are_tried_first_are_those_that_assume_least():
    found = {m: exact.solve(tilt(iid(torch, length=m), letters(), 0.7)) for m in (4, 60, 400)}
    assert [a.engine for a in found.values()] == ["sequences", "types", "letters"]
    assert found[4].reason == "81 outcomes listed: few enough to list"
    assert "1,891 count vectors" in found[60].reason
    assert "sum over positions on" in found[400].reason
    want = math.log(P @ np.exp(LETTERS / 0.7))
    for m, answer in found.items():
        assert float(answer.log_z) == pytest.approx(m * want, rel=1e-10)


def test_laws_are_what_they_say():
    listed = exact.by_sequences(ADDITIVE)
    y, p = listed.space.outcomes.numpy(), np.exp(np.asarray(listed.law))
    share = np.stack([(p[:, None] * (y == a)).sum(0) for a in range(3)], axis=1)
    by_letters = exact.by_letters(ADDITIVE)
    np.testing.assert_allclose(np.exp(by_letters.law.numpy()), share, rtol=1e-10)
    by_types = exact.by_types(ADDITIVE)
    counts = np.stack([(y == a).sum(1) for a in range(3)], axis=1)
    mass = [p[(counts == row).all(1)].sum() for row in by_types.counts]
    np.testing.assert_allclose(np.exp(by_types.law.numpy()), mass, rtol=1e-10)
    chain_target = TARGETS["bigrams of a chain"][0]
    listed = exact.by_sequences(chain_target)
    y, p = np.asarray(listed.space.outcomes), np.exp(np.asarray(listed.law))
    first, kernels = (np.exp(np.asarray(x)) for x in exact.by_messages(chain_target).law)
    path = first[y[:, 0]]
    for t, (a, b) in enumerate(itertools.pairwise(y.T)):
        path = path * kernels[t, a, b]
    np.testing.assert_allclose(path, p, rtol=1e-10)


def load(name):
    spec = importlib.util.spec_from_file_location(f"solved_{name}", MODELS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ON_SMOLLM2 = {
    "smollm2_sentiment",
    "best_of_n_sentiment",
    "gender_biographies",
    "lexical_constraint",
}
CATALOGUE = sorted(p.stem for p in MODELS.glob("[!_]*.py") if p.stem not in ON_SMOLLM2)


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_entry_of_the_catalogue_is_solved_as_its_program_stands(name):
    module = load(name)
    if name == "tiny_gpt2":
        lm = module.model()
        lm.module.requires_grad_(False)
        program, space = module.target(lm), Space.sequences(5, 4, eos=4, pad=4, xp=torch)
        target = ia.torch.target(module.target(lm))
    else:
        program, space = module.target(), module.space()
        target = ia.jax.target(program)
    want, answer = space.solve(target), exact.solve(program)
    for number in NUMBERS:
        got = float(getattr(answer, number))
        assert got == pytest.approx(float(getattr(want, number)), abs=1e-6), number
    listed = module.REFERENCE["log_z"]
    assert abs(float(answer.log_z) - listed["value"]) <= listed["tolerance"]
    assert exact.solve(target).engine == answer.engine == "sequences"


def test_long_sequences_by_types_are_a_sum_of_multinomials():
    m = 60
    target = tilt(iid(torch, length=m), lambda y: 1.0 * ((y == 2).sum(-1) - 10).abs(), 2.0)
    answer = exact.solve(target)
    k = np.arange(m + 1)
    ways = np.array([math.comb(m, i) for i in range(m + 1)], dtype=float)
    w = ways * 0.2**k * 0.8 ** (m - k) * np.exp(np.abs(k - 10) / 2)
    assert answer.engine == "types"
    assert float(answer.log_z) == pytest.approx(math.log(w.sum()), abs=1e-10)
    assert float(answer.expected_log_potential) == pytest.approx(
        w @ np.abs(k - 10) / 2 / w.sum(), abs=1e-10
    )
    law = w / w.sum()
    rest = m - k  # the other letters are as under the prior, 5 to 3
    entropy = -law @ (np.log(law) - np.log(ways)) + law @ rest * -(
        0.625 * math.log(0.625) + 0.375 * math.log(0.375)
    )
    assert float(answer.entropy) == pytest.approx(entropy, abs=1e-8)


def test_long_sequences_by_letters_are_a_product():
    m = 60
    probs = np.random.default_rng(2).dirichlet(np.ones(5), size=m)
    bonus = np.random.default_rng(3).normal(size=(m, 5))
    prior = pyro_dist.Categorical(t64(probs)).to_event(1)
    table = t64(bonus)
    answer = exact.solve(Target(prior, lambda y: table[np.arange(m), y].sum(-1)))
    w = probs * np.exp(bonus)
    law = w / w.sum(1, keepdims=True)
    assert answer.engine == "letters"
    assert float(answer.log_z) == pytest.approx(np.log(w.sum(1)).sum(), abs=1e-9)
    assert float(answer.entropy) == pytest.approx(-(law * np.log(law)).sum(), abs=1e-9)
    assert float(answer.kl_to_prior) == pytest.approx((law * np.log(law / probs)).sum(), abs=1e-9)
    np.testing.assert_allclose(np.exp(answer.law.numpy()), law, rtol=1e-9)


@pytest.mark.parametrize("automaton", [None, EVEN_ZEROS], ids=["free", "constrained"])
def test_long_sequences_by_messages_are_a_chain(automaton):
    m, beta = 60, 0.5
    target = tilt(TorchChain(m), bigrams, beta)
    want = exact.Chain(P, M, BIGRAMS.tolist(), m)
    if automaton is not None:
        target, want = product(target, automaton), want.constrain(automaton)
    answer, solved = exact.solve(target), want.solve(beta)
    assert answer.engine == "messages"
    assert float(answer.log_z) == pytest.approx(float(solved.log_z), abs=1e-9)
    reward = float(solved.expected_reward)
    assert float(answer.expected_log_potential) == pytest.approx(reward / beta, abs=1e-8)
    assert float(answer.kl_to_prior) == pytest.approx(float(solved.kl_to_prior), abs=1e-8)
