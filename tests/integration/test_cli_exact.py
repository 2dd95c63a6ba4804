"""`infer-align exact` and the paper's script: tables, plots, JSON, ends of the range, refusals."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from infer_align.cli import app, exact_figures
from infer_align.exact import best_of_n, reports, reward_law
from paper_repro.yang2024_asymptotics import run as paper

MODELS = Path(__file__).resolve().parents[2] / "models"
T2 = ("--memoryless", "--p", "0.5,0.3,0.2", "--r=0,1,2")
T1 = ("--memoryless", "--p", "0.5,0.3,0.2", "--q", "0.2,0.3,0.5")
T1_DECIMALS = "--r=-1.6094379124341003,-1.2039728043259361,-0.6931471805599453"
PLOTS = ("frontier", "simplex", "rate_function", "kl_best_of_n_tilt", "renyi_cross_entropy")
KEYS = {
    "bon": {
        "m", "delta", "log_n", "beta", "reward_tilt", "reward_bon", "kl_bon_prior", "kl_bon_tilt",
        "tv", "win_rate", "kl_bound", "log_kl_tilt_bon", "engine", "exact",
    },
    "tilt": {"delta", "beta", "log_z", "kl", "reward", "variance", "probs"},
    "frontier": {"kl", "beta", "reward", "variance", "slope", "curvature", "small_kl_expansion"},
    "rate_function": {"reward", "prior", "tilt", "best_of_n"},
    "renyi_cross_entropy": {"order", "prior", "tilt"},
}  # fmt: skip
NUMPYRO = """
import jax.numpy as jnp
import numpyro, numpyro.distributions as dist
{beta}
def target():
    def program():
        y = numpyro.sample("y", dist.Categorical(jnp.array([0.5, 0.3, 0.2])){shape})
        numpyro.factor("reward", {reward})
    return program
"""
FOUR = ".expand([4]).to_event(1)"


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in; curves of few points, for speed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reports, "POINTS", 9)
    monkeypatch.delenv("INFER_ALIGN_DEBUG", raising=False)
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["exact", *(str(a) for a in arguments)])


def report(*arguments: object) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return numbers(json.loads(done.stdout, parse_constant=no_json))


def no_json(constant: str) -> None:
    pytest.fail(f"{constant} is no JSON")


def numbers(value: Any) -> Any:
    """What is not finite as a number again: JSON has it as a text."""
    if isinstance(value, dict):
        return {key: numbers(x) for key, x in value.items()}
    if isinstance(value, list):
        return [numbers(x) for x in value]
    return float(value) if value in ("inf", "-inf", "nan") else value


def is_plot(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


def test_a_memoryless_model_is_printed_and_drawn(work: Path) -> None:
    done = run(*T2, "--m", "1,10", "--delta", "0.2")
    assert done.exit_code == 0, done.output
    for text in ("tilts, per token", "best-of-n, n = exp(m·delta)", "tilted FFT", "1.048370"):
        assert text in done.stdout
    drawn = sorted(path.stem for path in (work / "runs" / "exact-memoryless").iterdir())
    assert drawn == sorted(PLOTS)
    assert all(is_plot(work / "runs" / "exact-memoryless" / f"{name}.png") for name in PLOTS)
    assert all(f"{name}.png" in done.stdout.replace("\n", "") for name in PLOTS)


def test_four_letters_have_no_simplex(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ("--memoryless", "--p", "0.4,0.3,0.2,0.1", "--r=0,1,1,2", "--m", "5", "--delta", "0.3")
    drawn: list[Path] = []

    def save(paint: object, report: object, path: Path) -> Path:
        drawn.append(path)
        return path

    monkeypatch.setattr(exact_figures, "_save", save)
    report(*model, "--out", "plots")
    assert {path.stem for path in drawn} == set(PLOTS) - {"simplex"}


def test_json_has_every_section_and_number_of_the_report_and_draws_nothing(work: Path) -> None:
    found = report(*T2, "--m", "1,10", "--delta", "0.05,0.2")
    assert found == reports.memoryless(
        ["0.5", "0.3", "0.2"], ["0", "1", "2"], [1, 10], ["0.05", "0.2"]
    )
    assert not list(work.iterdir())
    assert set(found) == {*KEYS, "model"}
    for section, keys in KEYS.items():
        for row in found[section]:
            assert set(row) == keys, section
    assert [(r["m"], r["delta"]) for r in found["bon"]] == [
        (m, d) for m in (1, 10) for d in (0.05, 0.2)
    ]
    for row in found["rate_function"] + found["renyi_cross_entropy"]:
        assert set(row["tilt"]) == {"0.05", "0.2"}
    slopes = [row["slope"] for row in found["frontier"]]
    assert slopes == sorted(slopes, reverse=True)


def test_log_rewards_come_by_the_q_option_with_their_published_numbers() -> None:
    found = report(*T1, "--m", "10,200", "--delta", "0.2")
    (short, long), tilt = found["bon"], found["tilt"][0]
    assert 1 / tilt["beta"] == pytest.approx(1.669866, abs=5e-7)
    assert tilt["reward"] == pytest.approx(-1.070356, abs=5e-7)
    assert short["reward_bon"] == pytest.approx(-1.145504, abs=5e-7)
    assert long["reward_bon"] == pytest.approx(-1.078036, abs=5e-7)
    assert short["kl_bon_tilt"] == pytest.approx(0.038709, abs=5e-7)
    assert long["kl_bon_tilt"] == pytest.approx(0.007823, abs=5e-7)
    two = next(row for row in found["renyi_cross_entropy"] if row["order"] == 2)
    assert two["prior"] == pytest.approx(1.237874, abs=5e-7)


def test_whole_n_draws_a_whole_number() -> None:
    least, whole = report(*T2, "--m", "1,10", "--delta", "0.25", "--whole-n")["bon"]
    assert math.exp(whole["log_n"]) == pytest.approx(12)  # exp(2.5) is 12.18
    law = reward_law([0.5, 0.3, 0.2], [0, 1, 2], 10)
    want = float(law.expected_reward(best_of_n(law, 12))) / 10
    assert whole["reward_bon"] == pytest.approx(want)
    assert least["log_n"] == 0.0
    assert least["reward_bon"] == pytest.approx(0.7)


def test_the_ends_of_the_range_are_ordinary() -> None:
    found = report(*T2, "--m", "1,20", "--delta", "0,1.7", "--out", "plots")
    prior, best = found["tilt"]
    assert (prior["beta"], prior["kl"], prior["reward"]) == (math.inf, 0.0, pytest.approx(0.7))
    assert best["beta"] == 0.0
    assert best["probs"] == [0.0, 0.0, 1.0]
    assert best["kl"] == pytest.approx(-math.log(0.2))
    for row in found["bon"]:
        if row["delta"] == 0:
            assert row["beta"] == math.inf
            assert row["kl_bon_tilt"] == pytest.approx(0.0, abs=1e-12)
            assert row["reward_bon"] == pytest.approx(0.7)
        else:
            assert row["beta"] == 0.0
            assert row["kl_bon_tilt"] == math.inf
            assert row["kl_bon_prior"] <= -math.log(0.2) + 1e-12
    assert all(is_plot(path) for path in Path("plots").iterdir())


def test_inexact_rows_say_so_and_bound_what_they_report() -> None:
    model = ("--memoryless", "--p", "0.5,0.3,0.2", T1_DECIMALS)
    (row,) = report(*model, "--m", "10000", "--delta", "0.2")["bon"]
    assert row["exact"] is False
    assert row["engine"] == "reward grid"
    assert 0 < row["error"] < 1e-5
    assert row["reward_bon"] == pytest.approx(row["reward_tilt"], abs=1e-3)
    for name, (low, high) in row["bounds"].items():
        assert low <= row[name] <= high, name
    assert set(row["bounds"]) == {"reward_bon", "kl_bon_prior", "kl_bon_tilt", "tv", "win_rate"}
    assert row["win_rate"] <= 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give TARGET.py, or --memoryless with --p, --r, --m and --delta"),
        (("nowhere.py",), "no file nowhere.py"),
        (("--memoryless",), "give the rewards: --r, or --q"),
        ((*T2, "--q", "1,2,3", "--m", "1", "--delta", "1"), "one of them"),
        (T2, "--memoryless needs --m, --delta as well"),
        ((*T2, "--m", "5"), "--memoryless needs --delta as well"),
        ((MODELS / "tiny_gpt2.py", *T2, "--m", "1", "--delta", "1"), "leave TARGET.py out"),
        ((MODELS / "two_peaks.py", "--m", "5"), "belong to --memoryless"),
        ((MODELS / "tiny_gpt2.py", "--n", "2,0"), "best-of-n needs a finite n > 0, got 0"),
        ((*T2, "--m", "5,,6", "--delta", "1"), "--m is a list of numbers with commas"),
        ((*T2, "--m", "0", "--delta", "1"), "a whole number >= 1, got '0'"),
        ((*T2, "--m", "2.5", "--delta", "1"), "a whole number >= 1, got '2.5'"),
        ((*T2, "--m", "5", "--delta=-1"), "a number of nats >= 0, got -1"),
        ((*T2, "--m", "5", "--delta", "one"), "delta is 'one', which is not a finite number"),
        ((*T2[:3], "--r=0,1", "--m", "5", "--delta", "1"), "give one of each for every letter"),
        (("--memoryless", "--p", "0.5,0.6", "--r=0,1", "--m", "5", "--delta", "1"),
         "sum to 1.1, not to 1; divide them by their sum"),
        (("--memoryless", "--p", "1.5,-0.5", "--r=0,1", "--m", "5", "--delta", "1"),
         "must be numbers >= 0, and entry 1 is -0.5"),
        ((*T2[:3], "--q", "1,2,0", "--m", "5", "--delta", "1"), "log q needs positive q"),
        ((*T2[:3], "--r=0,1,inf", "--m", "5", "--delta", "1"), "reward 2 is 'inf'"),
        ((*T2, "--m", "10000000", "--delta", "0.1"), "20,000,001 levels on a lattice"),
    ],
)  # fmt: skip
def test_errors_are_one_message_with_a_remedy_and_status_two(
    arguments: tuple[object, ...], message: str
) -> None:
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr.replace("\n", "")
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.output
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [((*T2, "--m", "5", "--delta", "0.1", "--n", "3", "--json"), "--n"),
     ((MODELS / "tiny_gpt2.py", "--whole-n", "--json"), "--whole-n"),
     ((MODELS / "tiny_gpt2.py", "--n", "two"), "--n")],
)  # fmt: skip
def test_an_option_that_cannot_be_used_is_named(arguments: tuple[object, ...], flag: str) -> None:
    """Nothing is silently ignored (DESIGN.md, decision 10)."""
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert flag in done.stderr


def write(name: str, *, beta: str, reward: str, shape: str = FOUR) -> Path:
    path = Path(name)
    path.write_text(NUMPYRO.format(beta=beta, reward=reward, shape=shape), encoding="utf-8")
    return path


def test_a_numpyro_file_is_solved_in_units_of_its_beta(work: Path) -> None:
    path = write("letters.py", beta="BETA = 0.5", reward="jnp.sum(y == 2) / BETA")
    found = report(path, "--delta", "0.3", "--n", "1,4", "--out", "plots")
    z = math.log(1 + 0.2 * math.expm1(2))
    answer = found["answer"]
    assert answer["log_z"] == pytest.approx(4 * z)
    share = 0.2 * math.exp(2) / math.exp(z)
    assert answer["expected_reward"] == pytest.approx(4 * share)
    assert answer["expected_log_potential"] == pytest.approx(8 * share)
    assert answer["reason"] == "81 outcomes listed: few enough to list"
    assert [row["n"] for row in found["draws"]] == [1.0, 4.0]
    assert found["draws"][0]["reward_bon"] == pytest.approx(0.8)
    assert found["model"]["rewards"] == [0.0, 0.0, 1.0]
    assert [t["delta"] for t in found["tilt"]] == [0.3]
    assert sorted({row["m"] for row in found["bon"]}) == [1, 2, 4]
    assert {p.stem for p in (work / "plots").iterdir()} == set(PLOTS)


def test_a_file_without_beta_and_a_reward_that_is_not_additive() -> None:
    path = write("pairs.py", beta="", reward="(1.0 * jnp.sum(y[1:] == y[:-1]))")
    done = run(path, "--n", "2", "--json", "--out", "plots")
    assert done.exit_code == 0, done.output
    assert "the file has no BETA" in done.stderr
    assert [p.stem for p in Path("plots").iterdir()] == ["frontier"]
    found = json.loads(done.stdout)
    assert set(found) == {"answer", "frontier", "draws"}
    assert found["answer"]["beta"] == 1.0
    assert found["draws"][0]["reward_bon"] > 3 * 0.38  # the prior's, three pairs


def test_a_hard_constraint_alone_has_no_frontier() -> None:
    path = write("only.py", beta="", reward="jnp.where(y == 2, 0.0, -jnp.inf)", shape="")
    done = run(path)
    assert done.exit_code == 0, done.output
    assert "solved by sequences: 3 outcomes listed: the prior lists its support" in done.stdout
    assert "no frontier: the reward takes a single value where it is finite" in done.stdout
    assert f"{math.log(0.2):.6f}" in done.stdout
    assert not Path("runs").exists()


def test_the_tiny_language_model_is_solved_with_its_reference_numbers() -> None:
    found = report(MODELS / "tiny_gpt2.py", "--n", "1,16")
    assert found["answer"]["log_z"] == pytest.approx(5.6736532426844, abs=1e-8)
    assert found["answer"]["expected_reward"] == pytest.approx(2.0267180170595, abs=1e-8)
    assert found["draws"][0]["reward_bon"] == pytest.approx(0.57222621322111, abs=1e-8)
    assert found["draws"][1]["kl"] < math.log(16) - 15 / 16


def of_paper(capsys: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["run", *arguments])
    status = paper.main()
    shown = capsys.readouterr()
    return status, shown.out, shown.err


def test_the_papers_script_prints_the_same_json(capsys: Any, monkeypatch: Any) -> None:
    model = ("--p", "0.5,0.3,0.2", "--r=0,1,2", "--m", "1,10", "--delta", "1.7")
    status, out, _ = of_paper(capsys, monkeypatch, *model, "--json")
    assert status == 0
    assert out == run("--memoryless", *model, "--json").stdout
    status, out, _ = of_paper(capsys, monkeypatch, *model)
    assert status == 0
    assert "--json has all sections: bon, frontier" in out


def test_the_papers_script_refuses_what_has_no_bound(capsys: Any, monkeypatch: Any) -> None:
    model = ("--p", "0.5,0.3,0.2", "--r=0,1,2", "--m", "10000000", "--delta", "0.2")
    status, out, err = of_paper(capsys, monkeypatch, *model, "--json")
    assert (status, out) == (2, "")
    assert "best-of-n of 10000000 tokens" in err
    assert "20,000,001 levels on a lattice (at most 3,000,00" in err
    assert "shorten m" in err
    with pytest.raises(SystemExit) as stopped:
        of_paper(capsys, monkeypatch, "--p", "0.5,0.5")
    assert stopped.value.code == 2
    assert "a model needs --r, --m, --delta as well" in capsys.readouterr().err


def test_the_papers_claims_hold_as_a_program(root: Path) -> None:
    command = [sys.executable, "-m", "paper_repro.yang2024_asymptotics.run", "--smoke"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    assert "checks hold" in done.stdout
    assert done.stderr == ""
