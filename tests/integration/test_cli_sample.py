"""`infer-align sample`: JSON lines of every method, what they sum to, and what is refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from infer_align.cli import app, methods
from infer_align.torch import CausalLM
from tests.lm_zoo import tiny_model, tiny_tokenizer

TARGET = """
import pyro

MAX_NEW_TOKENS = 4
PROMPTS = ["a b", "c"]

def target(lm):
    def program(prompts):
        y = pyro.sample("y", lm(prompts))
        pyro.factor("ones", (y == 1).double().sum(-1) / 2)
    return program

def hard(lm):
    import infer_align as ia
    return ia.condition(lm, lambda y, prompts: (y == 1).any(-1))
"""
TWIST = """
def twist(lm):
    from infer_align.samplers import prefix_twist
    return prefix_twist(lambda prefix: (prefix == 1).double().sum(-1) / 2)
"""
COIN = """
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

def target():
    def program():
        y = numpyro.sample("y", dist.Categorical(jnp.array([0.75, 0.25])))
        numpyro.factor("reward", jnp.log(3.0) * y)
    return program
"""
MODEL = ("--model", "model", "--dtype", "float64")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def lines(done: Result) -> list[dict]:
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with targets and a tiny model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("INFER_ALIGN_DEBUG", raising=False)
    (tmp_path / "target.py").write_text(TARGET)
    (tmp_path / "twisted.py").write_text(TARGET + TWIST)
    (tmp_path / "coin.py").write_text(COIN)
    tiny_model("gpt2").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path


def scored(model: CausalLM, line: dict) -> float:
    ids = line["completion_ids"]
    value = torch.tensor([[ids + [4] * (4 - len(ids))]])
    with torch.no_grad():
        return float(model([line["prompt"]]).log_prob(value))


def test_importance_lines_are_what_they_say(work: Path) -> None:
    given = ("sample", "target.py", "--method", "importance", *MODEL, "-n", 40, "--seed", 3)
    done = run(*given)
    found = lines(done)
    assert [x["prompt"] for x in found] == ["a b"] * 40 + ["c"] * 40
    lm = CausalLM.from_pretrained("model", max_new_tokens=4, dtype=torch.float64)
    for line in found[::7]:
        ids = line["completion_ids"]
        assert line["log_proposal"] == pytest.approx(scored(lm, line))
        assert line["log_weight"] == pytest.approx(ids.count(1) / 2)
        assert line["log_target"] == pytest.approx(line["log_proposal"] + line["log_weight"])
        assert line["completion"].split() == ["_abc_"[i] for i in ids if i in (1, 2, 3)]
    for start in (0, 40):
        weights = np.exp([x["log_weight"] for x in found[start : start + 40]])
        shares = [x["probability"] for x in found[start : start + 40]]
        np.testing.assert_allclose(shares, weights / weights.sum())
    log_z = np.mean([
        math.log(np.mean(np.exp([x["log_weight"] for x in found[s : s + 40]]))) for s in (0, 40)
    ])  # fmt: skip
    said = next(line for line in done.stderr.splitlines() if line.startswith("log Z"))
    assert float(said.split()[2]) == pytest.approx(log_z, abs=1e-4)
    assert "40 outcomes drawn or scored" in done.stderr
    assert "Pareto k-hat" in done.stderr
    assert run(*given).stdout == done.stdout


OPTIONS = {
    "rejection": ("--log-bound", 2),
    "quasi-rejection": ("--acceptance-rate", 0.3),
    "importance": (),
    "resampling": ("--proposals", 60, "--smooth"),
    "metropolis": ("--steps", 5),
    "local-metropolis": ("--steps", 3),
    "smc": ("--ess-threshold", 1),
}


def test_every_method_is_tried() -> None:
    assert set(OPTIONS) == set(methods.READS)


@pytest.mark.parametrize("method", OPTIONS)
def test_every_method_prints_n_outcomes_a_prompt(work: Path, method: str) -> None:
    done = run("sample", "twisted.py", "--method", method, *OPTIONS[method], *MODEL, "-n", 6)
    found = lines(done)
    assert [x["prompt"] for x in found] == ["a b"] * 6 + ["c"] * 6
    for start in (0, 6):
        assert sum(x["probability"] for x in found[start : start + 6]) == pytest.approx(1.0)
    for line in found:
        ones = line["completion_ids"].count(1) / 2
        assert line["log_target"] - line["log_proposal"] == pytest.approx(ones)
        if method in ("rejection", "resampling", "metropolis", "local-metropolis"):
            assert line["probability"] == pytest.approx(1 / 6, abs=1e-9) or method == "resampling"
    assert "no twist" not in done.stderr
    assert "log Z" in done.stderr


def test_what_sample_prints_can_be_its_prompts_again(work: Path) -> None:
    prompts = ["a\u2028b", "a\x85 c", "b \x0cc"]
    (work / "p.jsonl").write_text(
        "".join(json.dumps({"prompt": p}, ensure_ascii=False) + "\n" for p in prompts),
        encoding="utf-8",
    )
    how = ("sample", "target.py", *MODEL, "--method", "importance", "-n", "2", "--prompts")
    first = run(*how, "p.jsonl")
    assert first.exit_code == 0, first.output
    (work / "again.jsonl").write_text(first.stdout, encoding="utf-8")
    second = run(*how, "again.jsonl")
    assert second.exit_code == 0, second.output
    found = [json.loads(line)["prompt"] for line in second.stdout.split("\n") if line]
    assert found == [p for p in prompts for _ in range(4)]  # two outcomes of each of two lines


def test_rejection_of_a_condition_keeps_to_it(work: Path) -> None:
    """The bound of a condition is 0, so none is needed; all outcomes meet it."""
    found = lines(run("sample", "target.py:hard", "--method", "rejection", *MODEL, "-n", 5))
    assert all(1 in x["completion_ids"] for x in found)
    loose = lines(run("sample", "target.py:hard", "--method", "importance", *MODEL, "-n", 30))
    rejected = [x for x in loose if 1 not in x["completion_ids"]]
    assert rejected
    assert all(x["log_weight"] == "-inf" and x["probability"] == 0 for x in rejected)


def test_a_missing_twist_is_said(work: Path) -> None:
    done = run("sample", "target.py", "--method", "smc", *MODEL, "-n", 2)
    assert len(lines(done)) == 4
    assert "smc without one is importance sampling" in done.stderr


def test_a_run_proposes_from_its_policy(work: Path) -> None:
    fitted = run(
        "fit", "target.py", *MODEL, "-n", 8, "--steps", 3, "--n-assess", 0, "--lora", 2,
        "--learning-rate", "0.05", "--run-dir", "run",
    )  # fmt: skip
    assert fitted.exit_code == 0, fitted.output
    found = lines(run("sample", "run", "--method", "importance", "-n", 3))
    prior = CausalLM.from_pretrained("model", max_new_tokens=4, dtype=torch.float64)
    policy = CausalLM.load("run/policy", prior=prior)
    for line in found:
        assert line["log_proposal"] == pytest.approx(scored(policy, line))
        target = scored(prior, line) + line["completion_ids"].count(1) / 2
        assert line["log_target"] == pytest.approx(target)
        assert line["log_weight"] == pytest.approx(target - line["log_proposal"])
    assert abs(scored(policy, found[0]) - scored(prior, found[0])) > 1e-3
    plain = lines(run("sample", "run", "-n", 2))
    assert set(plain[0]) == {"prompt", "completion", "completion_ids", "log_prob"}
    assert plain[0]["log_prob"] == pytest.approx(scored(policy, plain[0]))
    assert run("sample", "run", "--method", "importance", *MODEL).exit_code == 2


def test_numpyro_target(work: Path) -> None:
    done = run("sample", "coin.py", "--method", "importance", "-n", 1000)
    found = lines(done)
    mean = sum(x["probability"] * x["outcome"] for x in found)
    assert abs(mean - 0.5) < 0.1
    for line in found[:20]:
        assert line["log_weight"] == pytest.approx(math.log(3) * line["outcome"])
        assert line["log_proposal"] == pytest.approx(math.log([0.75, 0.25][line["outcome"]]))
    assert line["prompt"] is None


REFUSED = {
    "no method": (["target.py"], "--method: rejection"),
    "no such method": (["target.py", "--method", "hmc"], "take one of rejection"),
    "another's option": (
        ["target.py", "--method", "smc", "--log-bound", 0],
        "leave it out, or take --method rejection",
    ),
    "no beta": (["target.py", "--method", "quasi-rejection"], "--acceptance-rate"),
    "two betas": (
        ["target.py", "--method", "quasi-rejection", "--log-beta", 1, "--acceptance-rate", 0.1],
        "one of them",
    ),
    "numpyro model": (["coin.py", "--method", "importance", *MODEL], "NumPyro target"),
    "no file": (["gone.py", "--method", "importance"], "no file gone.py"),
    "no run": (["gone", "--method", "importance"], "not a run folder"),
    "options of a run": (["gone", "--steps", 3], "--steps needs a --method"),
    "bound too low": (
        ["target.py", "--method", "rejection", "--log-bound", 0, *MODEL, "-n", 50], "exceeded",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_what_to_do(work: Path, case: str) -> None:
    arguments, message = REFUSED[case]
    done = run("sample", *arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert "Traceback" not in done.output
