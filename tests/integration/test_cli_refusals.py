"""What cannot be right is refused with a sentence: numbers, sizes, and targets of all sorts."""

import inspect
import json
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from infer_align import samplers
from infer_align.cli import app, methods, sizes

HEAD = """
import pyro, torch
from tests.lm_zoo import tiny_lm

def model():
    return tiny_lm()

def target(lm):
    def program(prompts=None):
        y = pyro.sample("y", lm(prompts))
        pyro.factor("reward", 1.0 * y.sum(-1))
    return program
"""
NUMPYRO = """
import jax.numpy as jnp, numpyro, numpyro.distributions as dist

def target():
    def program():
        y = numpyro.sample("y", {law})
        numpyro.factor("reward", {value})
    return program
"""
LETTERS = "dist.Categorical(probs=jnp.array([.5, .3, .2]))"


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("INFER_ALIGN_DEBUG", raising=False)
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def said(done: Result, code: int = 2) -> str:
    """The one message of a refusal, on one line."""
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    assert all(line.startswith("loading ") for line in done.stdout.splitlines())
    return " ".join(done.stderr.replace("│", " ").replace(f"{Path.cwd()}/", "").split())


def options(kind: type) -> Iterator[tuple[str, str]]:
    """Every option of a kind of every command, from their annotations."""
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.callback.__name__  # type: ignore[attr-defined]
        for parameter in inspect.signature(command.callback).parameters.values():
            hint = (*typing.get_args(parameter.annotation), None)[0]
            if hint in (kind, kind | None):
                yield name, f"--{parameter.name.replace('_', '-')}"


REALS = sorted(options(float))
COUNTS = sorted(options(int))


def test_the_sweep_sees_the_options() -> None:
    assert ("fit", "--max-grad-norm") in REALS
    assert ("sample", "--log-bound") in REALS
    assert ("sample", "--proposals") in COUNTS
    assert len(REALS) >= 8
    assert len(COUNTS) >= 20


@pytest.mark.parametrize(("command", "flag"), REALS)
@pytest.mark.parametrize("value", ["nan", "-inf", "inf"])
def test_no_number_is_nan_or_infinite(command: str, flag: str, value: str) -> None:
    """Infinity has one meaning, no clipping of the gradient."""
    done = run(command, "gone.py", f"{flag}={value}")
    text = said(done)
    if (flag, value) == ("--max-grad-norm", "inf"):
        assert "no file gone.py" in text
    else:
        assert f"Invalid value for '{flag}'" in text
        assert value in text


@pytest.mark.parametrize(
    ("flag", "bad", "good"),
    [("--max-grad-norm", "-1", "0.1"), ("--learning-rate", "0", "1e-9"), ("--truncate", "0", "2"),
     ("--clip", "-3", "3")],
)  # fmt: skip
def test_the_end_of_a_range_is_outside(flag: str, bad: str, good: str) -> None:
    assert f"Invalid value for '{flag}'" in said(run("fit", "gone.py", f"{flag}={bad}"))
    assert "above 0" in said(run("fit", "gone.py", f"{flag}={bad}"))
    assert "no file gone.py" in said(run("fit", "gone.py", f"{flag}={good}"))


@pytest.mark.parametrize(
    ("flag", "bad"), [("--acceptance-rate", ("0", "1.01")), ("--ess-threshold", ("-0.01", "1.01"))]
)
def test_a_share_lies_between_0_and_1(flag: str, bad: tuple[str, str]) -> None:
    for value in bad:
        done = run("sample", "gone.py", "--method", "smc", f"{flag}={value}")
        assert f"Invalid value for '{flag}'" in said(done)
    assert "no file" in said(run("sample", "gone.py", "--method", "smc", "--ess-threshold=1"))


@pytest.mark.parametrize(("command", "flag"), COUNTS)
def test_no_count_is_beyond_all_machines(command: str, flag: str) -> None:
    assert f"Invalid value for '{flag}'" in said(run(command, "gone.py", f"{flag}={'9' * 20}"))


def test_what_the_memory_cannot_hold_is_refused_with_its_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """24 bytes · 10^9 · 4 tokens = 89.4 GiB; without tokens, 10^8 proposals: 2.2 GiB."""
    pytest.importorskip("torch")
    monkeypatch.setattr(sizes, "memory", lambda: 2.0 * 2**30)
    Path("t.py").write_text(HEAD)
    Path("n.py").write_text(NUMPYRO.format(law=LETTERS, value="1.0 * y"))
    text = said(run("sample", "t.py", "--method", "importance", "--n", 10**9))
    assert "--n 1,000,000,000" in text
    assert "take at least 89 GiB, and this machine has 2" in text
    assert "--max-new-tokens" in text
    text = said(run("sample", "n.py", "--method", "resampling", "--proposals", 10**8))
    assert "--proposals 100,000,000: so many outcomes take at least 2 GiB" in text
    text = said(run("sample", "n.py", "--method", "metropolis", "-n", 10, "--steps", 10**7))
    assert "--steps 100,000,000" in text
    sizes.check_size("--n", 2**31 // 24)
    text = said(run("fit", "t.py", "--n-assess", 10**8, "--run-dir", "run"))
    assert "--n-assess 100,000,000" in text
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("method", "flag"), [("rejection", "--log-bound"), ("quasi-rejection", "--log-beta")]
)
def test_a_bound_that_accepts_nothing_is_refused(method: str, flag: str) -> None:
    """The largest log-weight is 2; n = 5 within 10^3 · 10^6 calls needs a bound below 2 + 19.1."""
    Path("n.py").write_text(NUMPYRO.format(law=LETTERS, value="1.0 * y"))
    for value, words in (("1e308", "lies 1e+308 nats above"), ("21.2", "nats above")):
        text = said(run("sample", "n.py", "--method", method, f"{flag}={value}"))
        assert words in text
        assert "--max-calls is 1,000,000" in text
    done = run("sample", "n.py", "--method", method, f"{flag}=21", "--max-calls", 2000)
    assert done.exit_code == 2
    done = run("sample", "n.py", "--method", method, f"{flag}=9", "--max-calls", 100)
    assert done.exit_code == 0


def test_the_default_of_max_calls_is_the_samplers() -> None:
    for sampler in (samplers.rejection, samplers.quasi_rejection):
        assert inspect.signature(sampler).parameters["max_calls"].default == methods.MAX_CALLS


TARGETS = {
    "two arguments": ("def target(lm, other):\n    return None\n", "takes (lm, other); it is "
                      "called with one argument, the language model"),
    "a keyword": ("def target(*, lm):\n    return None\n", "NumPyro target"),
    "no function": ("target = 3\n", "t.py:target is int; it must be a function"),
    "nothing": ("", "t.py has no callable 'target' (its functions: none)"),
    "an exit": ("import sys\nsys.exit(0)\n", "t.py cannot be loaded: the program was ended by "
                "sys.exit(0), not by infer-align (t.py, line 2)"),
    "another's exit": ("raise GeneratorExit\n", "cannot be loaded: GeneratorExit"),
    "a null": ("x = 1\0\n", "null bytes"),
    "no encoding": ("x = '\xe9'\n", "t.py"),
    "depth": (f"x = {'(' * 3000}1{')' * 3000}\n", "t.py"),
    "async": (HEAD.replace("def target", "async def target"), "is an async function"),
    "beta": (HEAD + "BETA = 'x'\n", "BETA in t.py is 'x'; it must be a number"),
    "no beta": (HEAD + "BETA = 0\n", "a temperature is positive and finite"),
    "nan beta": (HEAD + "BETA = float('nan')\n", "a temperature is positive and finite"),
    "model": (HEAD + "def model():\n    return None\n", "t.py:model returned NoneType"),
    "model's argument": (HEAD + "def model(x):\n    return None\n", "t.py:model takes (x); it is "
                         "called with no argument"),
    "features": (HEAD + "def features(lm):\n    return [len]\n", "t.py:features returned list"),
    "a feature": (HEAD + "def features(lm):\n    return {'x': 1}\n", "t.py:features has 'x': int"),
    "prompts": (HEAD + "PROMPTS = 'a b'\n", "PROMPTS in t.py is of type str"),
}  # fmt: skip


@pytest.mark.parametrize("case", TARGETS)
def test_a_target_that_is_none_is_refused(case: str) -> None:
    text, message = TARGETS[case]
    Path("t.py").write_text(text, encoding="latin-1")
    done = run("fit", "t.py", "--run-dir", "run", "--n-assess", 0)
    assert message in said(done)
    assert not Path("run").exists()


@pytest.mark.parametrize("value", ["'x'", "0", "2.5", "10**12", "True - 1"])
def test_a_length_that_is_none_is_refused(value: str) -> None:
    Path("t.py").write_text(HEAD.replace("def model", "def other") + f"MAX_NEW_TOKENS = {value}\n")
    done = run("fit", "t.py", "--model", "gone", "--run-dir", "run")
    assert "must be a whole number from 1 to 1000000000" in said(done)


def test_a_home_that_nobody_has_is_refused() -> None:
    for arguments in (
        ("fit", "~nouser/x.py"), ("sample", "~nouser/x.py"), ("exact", "~nouser/x.py"),
        ("assess", "~nouser/run"), ("fit", "t.py", "--prompts=~nouser/p.txt"),
        ("fit", "t.py", "--run-dir=~nouser/run"), ("exact", "t.py", "--out=~nouser/plots"),
    ):  # fmt: skip
        assert "there is no user 'nouser'" in said(run(*arguments))


def test_a_home_is_expanded(monkeypatch: pytest.MonkeyPatch, work: Path) -> None:
    monkeypatch.setenv("HOME", str(work))
    assert "no file x.py" in said(run("fit", "~/x.py"))
    assert "run is not a run folder" in said(run("assess", "~/run"))


EXACT = {
    "prompts": (HEAD.replace("prompts=None", "prompts"), "the program of", "has no PROMPTS"),
    "columns": (HEAD.replace("prompts=None", "prompts, topic"), "columns of a prompt file (topic)",
                "defaults"),
    "no model": (HEAD.replace("def model", "def other"), "has no def model()", "language model"),
    "nan": (NUMPYRO.format(law=LETTERS, value="jnp.nan * y"), "", ""),
    "nothing": (NUMPYRO.format(law=LETTERS, value="-jnp.inf + y"), "", ""),
    "folded": (NUMPYRO.format(law="dist.FoldedDistribution(dist.Normal(0, 1))", value="y"),
               "", ""),
    "text": (NUMPYRO.format(law=LETTERS, value="'a'"), "t.py", "str"),
    "program": ("def target():\n    return 3\n", "t.py:target returned a int", "a Target"),
}  # fmt: skip


@pytest.mark.parametrize("case", EXACT)
def test_what_exact_cannot_solve_is_said(case: str) -> None:
    text, *words = EXACT[case]
    Path("t.py").write_text(text)
    done = run("exact", "t.py", "--out", "plots")
    shown = said(done, done.exit_code)
    assert done.exit_code in (1, 2)
    assert shown.count("error: ") == 1
    assert "AssertionError, without" not in shown or "log-potential is NaN" in shown
    for word in words:
        assert word.lower() in shown.lower()
    assert not Path("plots").exists()


def test_a_program_with_an_argument_is_not_sampled_without_it() -> None:
    Path("t.py").write_text(
        "import numpyro\n\ndef target():\n    return lambda x: numpyro.factor('r', x)\n"
    )
    shown = said(run("sample", "t.py", "--method", "smc", "-n", "3"))
    assert "the program of t.py:target takes (x); it is called with no argument" in shown


def test_what_a_target_prints_is_not_in_the_product() -> None:
    Path("n.py").write_text("print('loaded')\n" + NUMPYRO.format(law=LETTERS, value="1.0 * y"))
    for arguments in (("sample", "n.py", "--method", "importance"), ("exact", "n.py", "--json")):
        done = run(*arguments)
        assert done.exit_code == 0, done.output
        assert all(json.loads(line) for line in done.stdout.splitlines())
        assert "loaded" in done.stderr
