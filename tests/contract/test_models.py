"""Each number that a file of models/ promises is reproduced by infer_align, to its tolerance.

The numbers come from closed forms or from scripts/reference_numbers.py, which imports nothing of
infer_align. A new file is found by itself; what its numbers are is said in ANSWERS.
"""

import ast
import importlib.util
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import infer_align as ia
from infer_align import Space, divergences

ROOT = Path(__file__).resolve().parents[2]
FILES = {path.stem: path for path in sorted((ROOT / "models").glob("[!_]*.py"))}
MEASURED = {"smollm2_sentiment", "best_of_n_sentiment", "lexical_constraint", "gender_biographies"}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"catalogue_{name}", FILES[name])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference(name: str) -> dict[str, dict[str, Any]]:
    """REFERENCE as `infer-align models` reads it: without running the file."""
    for node in ast.parse(FILES[name].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "REFERENCE":
            return ast.literal_eval(node.value)
    raise AssertionError(f"{name} has no REFERENCE")


def from_prior(space: Space, target: Any) -> dict[str, Any]:
    """Log Z, and how far the prior is from the target by every divergence."""
    log_prior, log_target = space.log_prob(target.given()), space.log_target(target)
    solution = space.solve(target)
    found = {"log_z": solution.log_z, "entropy": solution.entropy}
    laws = np.asarray(log_prior.tolist()), np.asarray(log_target.tolist())  # no compilation
    for divergence in divergences.ALL:
        found[f"{divergence.name}_of_prior"] = space.divergence(divergence, *laws)
    np.testing.assert_allclose(
        float(solution.kl_to_prior), float(found["forward_kl_of_prior"]), rtol=1e-9
    )
    return found


def with_reward(m: ModuleType) -> tuple[Space, Any, dict[str, Any]]:
    space, target = m.space(), ia.jax.target(m.target())
    reward = m.reward(space.outcomes)
    log_prior, log_target = space.log_prob(target.given()), space.log_target(target)
    found = from_prior(space, target) | {
        "expected_reward": space.expectation(reward, log_target),
        "expected_reward_of_prior": space.expectation(reward, log_prior),
    }
    return space, target, found


def memoryless_ternary(m: ModuleType) -> dict[str, Any]:
    space, target, found = with_reward(m)
    # The policy family holds the target: a memoryless law with the tilted letters.
    logits = jnp.log(jnp.array(m.PRIOR)) + jnp.log(jnp.array(m.REWARD_PROBS)) / m.BETA
    gap = space.divergence(
        divergences.forward_kl, space.log_prob(m.policy(logits)), space.log_target(target)
    )
    assert float(gap) < 1e-12
    return found


def two_peaks(m: ModuleType) -> dict[str, Any]:
    space, target, found = with_reward(m)
    log_target = space.log_target(target)
    ones = space.outcomes.sum(-1)

    def at(s: Any, divergence: Any) -> Any:
        policy = m.policy(jnp.log(s) - jnp.log1p(-s))
        return divergence(space.log_prob(policy, tolerance=math.inf), log_target)  # traceable

    def best(divergence: Any, low: float, high: float) -> float:
        grad = jax_grad(lambda s: at(s, divergence))
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if float(grad(middle)) < 0 else (low, middle)
        return (low + high) / 2

    forward, reverse = divergences.forward_kl, divergences.reverse_kl
    matched, right, left = (
        best(forward, 0.1, 0.9),
        best(reverse, 0.6, 0.9),
        best(reverse, 0.05, 0.3),
    )
    return found | {
        "mass_of_right_peak": space.expectation(1.0 * (ones > m.CENTRE), log_target),
        "forward_kl_optimum": matched,
        "forward_kl_minimum": at(matched, forward),
        "reverse_kl_at_forward_optimum": at(matched, reverse),
        "reverse_kl_optimum": right,
        "reverse_kl_minimum": at(right, reverse),
        "reverse_kl_local_optimum": left,
        "reverse_kl_local_minimum": at(left, reverse),
        "forward_kl_at_reverse_optimum": at(right, forward),
    }


def jax_grad(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    import jax

    return jax.jit(jax.grad(f))


def rare_constraint(m: ModuleType) -> dict[str, Any]:
    space, target = m.space(), ia.jax.target(m.target())
    log_target = space.log_target(target)
    count = space.expectation(m.count(space.outcomes), log_target)
    letters = jnp.stack(
        [space.expectation((space.outcomes == a).mean(-1), log_target) for a in range(3)]
    )
    matched = space.log_prob(m.policy(jnp.log(letters)))
    return from_prior(space, target) | {
        "probability": jnp.exp(space.log_z(target)),
        "expected_count": count,
        "memoryless_optimum": letters[m.LETTER],
        "memoryless_forward_kl": space.divergence(divergences.forward_kl, matched, log_target),
    }


def markov_bigram(m: ModuleType) -> dict[str, Any]:
    space, target, found = with_reward(m)
    log_target = space.log_target(target)
    return found | {
        "first_is_a": space.expectation(1.0 * (space.outcomes[:, 0] == 0), log_target),
        "last_is_c": space.expectation(1.0 * (space.outcomes[:, -1] == 2), log_target),
    }


def asymmetric_bandit(m: ModuleType) -> dict[str, Any]:
    space, target = m.space(), ia.jax.target(m.target())
    reward = space.expectation(jnp.array(m.REWARDS), space.log_target(target))
    return from_prior(space, target) | {"expected_reward": reward}


def tiny_gpt2(m: ModuleType) -> dict[str, Any]:
    lm = m.model()
    target = ia.torch.target(m.target(lm))
    space = Space.sequences(5, m.MAX_NEW_TOKENS, eos=4, pad=4, xp=torch)
    assert len(space) == 341
    reward = m.reward(space.outcomes)
    assert lm.decode(torch.tensor([[1, 2, 4, 4]])) == ["a b"]
    return from_prior(space, target) | {
        "expected_reward": space.expectation(reward, space.log_target(target)),
        "expected_reward_of_prior": space.expectation(reward, space.log_prob(lm())),
    }


def smollm2_sentiment(m: ModuleType) -> dict[str, Any]:
    lm = m.model()
    n = 512  # what the tolerances allow for
    tree = ia.torch.assess(lm, m.target(lm), m.PROMPTS, n=n, features=m.features(lm), seed=1)
    found = {name: e.value for name, e in ia.diagnostics.estimates(tree).items()}
    log_weight = np.asarray(tree["sample_stats"]["log_weight"].values).reshape(-1)
    return {
        "log_z": found["log_z"],
        "expected_reward": found["target_reward"],
        "expected_reward_of_prior": found["policy_reward"],
        "forward_kl_of_prior": found["forward_kl"],
        "reverse_kl_of_prior": found["reverse_kl"],
        "ess_of_prior": float(ia.diagnostics.kish_ess(log_weight)) / n,
    }


def ensemble_reward(m: ModuleType) -> dict[str, Any]:
    space, targets = m.space(), (m.target(), m.mean_target(), m.uncertainty_target())
    of_c = (space.outcomes == 2).sum(-1) / m.LENGTH
    log_z = [space.log_z(target) for target in targets]
    c = [space.expectation(of_c, space.log_target(target)) for target in targets]
    return from_prior(space, targets[0]) | {
        "c_of_worst_case": c[0],
        "log_z_of_mean": log_z[1],
        "c_of_mean": c[1],
        "log_z_of_uncertainty": log_z[2],
        "c_of_uncertainty": c[2],
    }


def preference_game(m: ModuleType) -> dict[str, Any]:
    space, target, found = m.space(), m.target(), m.equilibrium()
    # The target is the tilt by the win rate against the equilibrium: the equilibrium again.
    np.testing.assert_allclose(
        np.asarray(space.log_target(target)), found.log_policy, rtol=1e-9, atol=1e-12
    )
    assert found.duality_gap < 1e-12
    prior = np.log(m.PRIOR)
    gap = ia.exact.duality_gap(np.array(m.PREFERENCE), prior, prior, m.BETA)
    return from_prior(space, target) | {
        **{f"equilibrium_{y}": p for y, p in enumerate(np.exp(found.log_policy))},
        "duality_gap_of_prior": gap,
    }


def regex_automaton(m: ModuleType) -> dict[str, Any]:
    space, target = m.space(), m.target()
    y = np.asarray(space.outcomes)
    solution = space.solve(target)
    messages = ia.exact.by_messages(target)  # never lists a sequence
    np.testing.assert_allclose(float(messages.log_z), float(solution.log_z), rtol=1e-12)
    np.testing.assert_allclose(float(messages.kl_to_prior), -float(solution.log_z), rtol=1e-9)
    p = np.exp(np.asarray(solution.log_prob))
    return {
        "matches": (p > 0).sum(),
        "probability": math.exp(float(messages.log_z)),
        "log_z": messages.log_z,
        "forward_kl_of_prior": messages.kl_to_prior,
        "first_is_a": p @ (y[:, 0] == 0),
        "expected_pairs": p @ (y == 1).sum(-1) / 2,
        "expected_count_of_c": p @ (y == 2).sum(-1),
    }


def best_of_n_sentiment(m: ModuleType) -> dict[str, Any]:
    lm = m.model()
    n = 512  # what the tolerances allow for
    tree = ia.torch.assess(lm, m.target(lm), m.PROMPTS, n=n, features=m.features(lm), seed=1)
    found = {name: e.value for name, e in ia.diagnostics.estimates(tree).items()}
    assert "potential is estimated" in tree["diagnostics"].attrs["notes"]
    return {
        "log_z": found["log_z"],
        "expected_reward": found["target_reward"],
        "expected_reward_of_prior": found["policy_reward"],
        "forward_kl_of_prior": found["forward_kl"],
        "win_rate": found["target_win_rate"],
    }


def lexical_constraint(m: ModuleType) -> dict[str, Any]:
    lm = m.model()
    n = 512  # what the tolerances allow for
    tree = ia.torch.assess(lm, m.target(lm), m.PROMPTS, n=n, features=m.features(lm), seed=1)
    found = {name: e.value for name, e in ia.diagnostics.estimates(tree).items()}
    return {
        "probability": math.exp(found["log_z"]),
        "log_z": found["log_z"],
        "forward_kl_of_prior": -found["log_z"],
        "target_amazing": found["target_amazing"],
    }


def gdc_moments(m: ModuleType) -> dict[str, Any]:
    fit = ia.exact.match_moments(ia.jax.target(m.program()))
    assert fit.achieved == pytest.approx(m.MEANS, abs=1e-8)
    return from_prior(m.space(), m.target()) | {
        f"multiplier_{name}": value for name, value in fit.multipliers.items()
    }


def gender_biographies(m: ModuleType) -> dict[str, Any]:
    lm, generator = m.model(), torch.Generator().manual_seed(1)
    n = 512  # what the tolerances allow for
    y, log_prob = lm(m.PROMPTS).sample_with_log_prob((n,), generator=generator)
    sample = ia.WeightedSample(y, np.zeros((n, 1)), log_prob.double().numpy())
    fit = ia.solve_moments(ia.torch.target(m.program(lm)), sample, m.PROMPTS)
    gender = m.features(lm)["gender"](y, m.PROMPTS)
    return {
        "female_of_prior": (gender > 0).double().mean(),
        "gendered_of_prior": gender.abs().mean(),
        "multiplier_gender": fit.multipliers["gender"],
        "multiplier_gendered": fit.multipliers["gendered"],
        "forward_kl_of_prior": fit.kl_to_base[0],
    }


ANSWERS: dict[str, Callable[[ModuleType], dict[str, Any]]] = {
    f.__name__: f
    for f in (
        memoryless_ternary, two_peaks, rare_constraint, markov_bigram, asymmetric_bandit,
        tiny_gpt2, smollm2_sentiment,
        ensemble_reward, preference_game, regex_automaton, lexical_constraint,
        best_of_n_sentiment, gdc_moments, gender_biographies,
    )
}  # fmt: skip


def test_every_file_has_answers_and_a_line_in_the_readme() -> None:
    assert set(FILES) == set(ANSWERS), "say in ANSWERS how the numbers of a new file are found"
    readme = (ROOT / "models" / "README.md").read_text(encoding="utf-8")
    assert not [name for name in FILES if f"`{name}`" not in readme]


@pytest.mark.parametrize("name", FILES)
def test_file_is_short_and_says_where_its_numbers_come_from(name: str) -> None:
    source = FILES[name].read_text(encoding="utf-8")
    assert source.count("\n") <= 80
    assert (ast.get_docstring(ast.parse(source)) or "").split("\n")[0].endswith((".", ":"))
    numbers = reference(name)
    assert numbers
    for key, entry in numbers.items():
        assert set(entry) == {"value", "tolerance", "source"}, key
        assert math.isfinite(entry["value"])
        assert entry["tolerance"] > 0
        assert entry["source"].startswith(("closed form: ", "scripts/reference_numbers.py")), key


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow) if n in {*MEASURED, "regex_automaton"} else n
        for n in FILES
    ],
)
def test_reference_numbers_are_reproduced(name: str) -> None:
    found = ANSWERS[name](load(name))
    for key, entry in reference(name).items():
        value, wanted = float(found[key]), entry["value"]
        assert abs(value - wanted) <= entry["tolerance"], f"{key}: {value}, promised {wanted}"


def test_script_agrees_and_imports_nothing_of_ours() -> None:
    script = ROOT / "scripts" / "reference_numbers.py"
    imported = {
        name
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else
                     [alias.name for alias in node.names])
    }  # fmt: skip
    assert not [name for name in imported if name.startswith("infer_align")]
    exact = [name for name in FILES if name not in {*MEASURED, "tiny_gpt2"}]  # those need no torch
    done = subprocess.run(
        [sys.executable, str(script), "--check", *exact], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_tiny_gpt2_starts_far_from_its_target() -> None:
    numbers = reference("tiny_gpt2")
    for name in ("jensen_shannon", "forward_kl", "reverse_kl"):
        assert numbers[f"{name}_of_prior"]["value"] > 0.4
