"""The run folder: who may write there, what is deleted, and what a damaged one says."""

import hashlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from infer_align.cli import app, assessment_figures, figures, locks, metrics, runs, settings
from infer_align.cli.errors import Stop

TARGET = """
import pyro
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from infer_align.torch import CausalLM

MAX_NEW_TOKENS = 3
REWARD = 1.0

def model():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=5, n_positions=8, n_embd=8, n_layer=1, n_head=2,
                        bos_token_id=4, eos_token_id=4)
    return CausalLM(GPT2LMHeadModel(config).double(), None, max_new_tokens=3)

def target(lm):
    def program(prompts):
        y = pyro.sample("y", lm(prompts))
        hook()
        pyro.factor("ones", REWARD * (y == 1).double().sum(-1))
    return program

def hook():
    pass
"""
SMALL = ("-n", 8, "--steps", 4, "--n-assess", 0, "--checkpoint-every", 2, "--lora", 2)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def fit(run_dir: object, *more: object) -> Result:
    return run("fit", "target.py", *SMALL, "--run-dir", run_dir, *more)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("torch")  # what is fitted is a language model
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("INFER_ALIGN_DEBUG", raising=False)
    for module in (figures, assessment_figures):  # drawn in test_cli.py
        monkeypatch.setattr(module, "svg", lambda *_, **__: "")
    Path("target.py").write_text(TARGET)
    return tmp_path


def refused(done: Result, *texts: str, code: int = 2) -> None:
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    for text in texts:
        assert text in done.stderr, (text, done.stderr)


def flip(path: Path, at: int = -5) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1
    path.write_bytes(data)


# Owners


def test_two_runs_of_one_second_get_two_folders(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(runs.datetime):
        @classmethod
        def now(cls, tz: object = None) -> "Clock":
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(runs, "datetime", Clock)
    with (
        runs.begun(None, "t", overwrite=False) as (one, _),
        runs.begun(None, "t", overwrite=False) as (two, _),
    ):
        assert one.path == Path("runs/2026-01-02_030405_t")
        assert two.path == Path("runs/2026-01-02_030405_t_2")


def test_a_live_run_is_left_alone(work: Path) -> None:
    assert fit("run").exit_code == 0
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    with locks.held(Path("run")):
        me = f"process {os.getpid()} on {socket.gethostname()}"
        for options in ((), ("--overwrite",), ("--resume",), ("--resume", "--steps", 9)):
            refused(fit("run", *options), "a run is writing to run", me)
        assert run("sample", "run", "-n", 1).exit_code == 0  # readers may
    assert {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()} == before


SLEEPER = """
import sys, time
from pathlib import Path
from infer_align.cli import locks
with locks.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_runs_lock_is_taken_over(work: Path) -> None:
    Path("run").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER, "run"], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        refusal = f"process {other.pid} on .*wait until it ends"
        with pytest.raises(Stop, match=refusal), locks.held(Path("run")):
            pass
        other.send_signal(signal.SIGKILL)
    assert (Path("run") / locks.NAME).is_file()
    with locks.held(Path("run")):
        assert json.loads((Path("run") / locks.NAME).read_text())["pid"] == os.getpid()
    assert not (Path("run") / locks.NAME).exists()


def test_what_a_killed_process_was_writing_is_swept(work: Path) -> None:
    assert fit("run").exit_code == 0
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    live, stray = (Path(f"run/.report.html.{pid}.partial") for pid in (child.pid, os.getpid()))
    mine = Path("run/.mine.partial")
    for path in (live, stray, mine):
        path.write_text("half")
    done = run("fit", "--resume", "--run-dir", "run")
    assert done.exit_code == 0, done.output
    assert [path.exists() for path in (live, stray, mine)] == [True, False, True]
    child.communicate(b"\n")
    assert fit("run", "--overwrite", "--steps", 1).exit_code == 0
    assert [path.exists() for path in (live, mine)] == [False, True]


def test_a_lock_of_another_machine_is_said(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("run").mkdir()
    lock = Path("run") / locks.NAME
    lock.write_text(json.dumps({"pid": 7, "host": "elsewhere", "since": "noon"}))
    refused(fit("run"), "process 7 on elsewhere, since noon", f"remove {lock}")
    for text in ("", "[]", '{"pid": 7', '{"pid": "x"}', "[" * 9_999):  # cut short by a kill
        lock.write_text(text)
        with locks.held(Path("run")):
            pass
    # A file system without locks: the process number tells.
    monkeypatch.setattr(locks, "_grab", lambda number: None)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = {"pid": child.pid, "host": socket.gethostname()}
    lock.write_text(json.dumps(owner))
    with pytest.raises(Stop, match=f"process {child.pid}"), locks.held(Path("run")):
        pass
    child.communicate(b"\n")
    with locks.held(Path("run")):
        pass


@pytest.mark.parametrize("how", ["delete", "move", "replace"])
def test_a_folder_taken_from_under_a_run_stops_it(work: Path, how: str) -> None:
    text = TARGET.replace("def hook():\n    pass", HOOK.format(how=how))
    Path("target.py").write_text(text)
    done = fit("run", "--steps", 9)
    refused(done, "run was deleted or moved while the run was writing", code=1)
    assert not Path("run/checkpoint").exists()
    assert Path("elsewhere/checkpoint").exists() == (how == "move")
    if how == "move":
        Path("target.py").write_text(TARGET)
        done = run("fit", "--resume", "--run-dir", "elsewhere", "--trust-target")
        assert done.exit_code == 0, done.output


HOOK = """
def hook():
    import os, shutil, pathlib
    lines = pathlib.Path("run/metrics.jsonl")
    if lines.is_file() and lines.read_bytes().count(b"\\n") == 5:
        if "{how}" == "move":
            os.rename("run", "elsewhere")
        else:
            shutil.rmtree("run")
        if "{how}" == "replace":
            os.mkdir("run")
"""


# What is deleted


def test_overwrite_deletes_what_a_run_wrote_and_nothing_else(work: Path) -> None:
    """A Hugging Face folder has a config.json, too, and may have any of our names in it."""
    for name in ("config.json", "checkpoint/x", "policy/important.txt", "report_thesis.html"):
        path = Path("mine") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    refused(fit("mine", "--overwrite"), "no run.json", "another --run-dir")
    assert (Path("mine") / "policy/important.txt").read_text() == "policy/important.txt"

    assert fit("run").exit_code == 0
    assert run("assess", "run", "-n", 2).exit_code == 0
    assert Path("run/report_training_prompts.html").is_file()
    kept = {}
    for name in ("mine.txt", "report_thesis.html", "assessment_mine.nc", "metrics_mine.jsonl"):
        (Path("run") / name).write_text("kept")
        kept[Path("run") / name] = "kept"
    for name in ("policy/important.txt", "checkpoint/x", "checkpoint.previous/policy/y"):
        mine = Path("run") / name
        mine.write_text("kept")
        everything = {p for p in Path("run").rglob("*") if p.is_file()}
        refused(fit("run", "--overwrite"), f"{name} was not written by infer_align", "move that")
        assert {p for p in Path("run").rglob("*") if p.is_file()} == everything
        mine.unlink()
    done = fit("run", "--overwrite", "--steps", 2)
    assert done.exit_code == 0, done.output
    assert {path: path.read_text() for path in kept} == kept
    names = {p.name for p in Path("run").iterdir()} - {path.name for path in kept}
    assert names == {
        "run.json", "config.json", "metrics.jsonl", "checkpoint", "checkpoint.previous", "policy",
    }  # fmt: skip


def test_a_manifest_from_elsewhere_deletes_nothing_of_ours(work: Path) -> None:
    Path("thesis.txt").write_text("kept")
    assert fit("run").exit_code == 0
    for name in ("../thesis.txt", "thesis.txt", str(Path("thesis.txt").resolve())):
        Path("run/run.json").write_text(json.dumps({"infer_align_run": 1, "files": {name: ""}}))
        refused(fit("run", "--overwrite"), "does not list the files of a run")
    assert Path("thesis.txt").read_text() == "kept"


# What is damaged


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_goes_on(work: Path) -> None:
    assert fit("whole", "--steps", 6).exit_code == 0
    assert fit("run").exit_code == 0
    weights = Path("run/checkpoint/policy/adapter_model.safetensors")
    flip(weights)
    done = run("fit", "--resume", "--run-dir", "run", "--steps", 6)
    refused(done, f"{weights.resolve()} is not as it was written", "of step 2, is whole", "mv run/")
    assert "go on with" not in done.stderr
    Path("run/checkpoint").rename("run/checkpoint.damaged")
    done = run("fit", "--resume", "--run-dir", "run", "--steps", 6)
    assert done.exit_code == 0, done.output
    ours, whole = (Path(r) / "policy/adapter_model.safetensors" for r in ("run", "whole"))
    assert ours.read_bytes() == whole.read_bytes()

    flip(Path("run/policy/adapter_model.safetensors"))
    for command in (("assess", "run", "-n", 2), ("sample", "run")):
        refused(run(*command), "the fitted policy is damaged", "adapter_model.safetensors", "move")
    Path("run/policy").rename("aside")
    assert run("sample", "run", "-n", 1).exit_code == 0
    flip(Path("run/checkpoint/state.json"))
    refused(run("sample", "run", "-n", 1), "state.json is not as it was written")


def test_damaged_metrics_are_said_and_kept_aside(work: Path) -> None:
    assert fit("run").exit_code == 0
    path = Path("run/metrics.jsonl")
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    digit = whole.replace(b'"learning_rate": 0.0002', b'"learning_rate": 0.0003', 1)
    cases = {
        "digit": (digit, "SHA-256", [1, 2, 3, 4]),
        "line": (b"".join([lines[0], b"\xff\n", *lines[2:]]), "", [1, 3, 4]),
        "cut": (b"".join(lines[:2]), "has 2 lines, of 4", [1, 2]),
        "gone": (None, "is missing, of 4", []),
    }
    for number, (data, message, steps) in enumerate(cases.values(), 1):
        runs.RunFolder(Path("run")).record(
            "metrics.jsonl", {"lines": 4, "sha256": hashlib.sha256(whole).hexdigest()}
        )
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)
        done = run("fit", "--resume", "--run-dir", "run")
        assert done.exit_code == 0, done.output
        assert "metrics.jsonl is damaged" in done.stderr
        assert message in done.stderr
        aside = Path(f"run/metrics_damaged_{number}.jsonl")
        assert aside.is_file() == (data is not None)
        assert data is None or aside.read_bytes() == data
        assert metrics.read(runs.RunFolder(Path("run"))).get("step", []) == pytest.approx(steps)
        done = run("fit", "--resume", "--run-dir", "run")  # said once
        assert "damaged" not in done.stderr
    path.write_bytes(whole + b'{"step": 5, "lo')
    runs.RunFolder(Path("run")).record("metrics.jsonl", None)
    done = run("fit", "--resume", "--run-dir", "run", "--steps", 5)
    assert "damaged" not in done.stderr
    assert path.read_bytes().startswith(whole)
    assert len(path.read_bytes().splitlines()) == 5


def test_a_damaged_assessment_is_made_again(work: Path) -> None:
    assert fit("run", "--n-assess", 2).exit_code == 0
    tree = Path("run/assessment_before.nc")
    flip(tree, 9_000)
    done = run("fit", "--resume", "--run-dir", "run")
    assert done.exit_code == 0, done.output
    assert "assessment_before.nc is not as the run wrote it" in done.stderr
    assert "assessing the prior" in done.stdout
    assert runs.RunFolder(Path("run")).is_whole(tree)  # the next one reads it


CONFIGS = {
    "list": ("[1]", "a JSON list; an object is needed"),
    "deep": ("[" * 200_000, "nested too deeply"),
    "not JSON": ('{"settings": {', "not JSON"),
    "not UTF-8": (b"\xff\xfe", "not UTF-8"),
    "edited": ({"estimator": "other"}, "--trust-target"),
    "no settings": ({"settings": None}, "'settings' must be a dict, got None"),
    "no target": ({"settings": {}}, "'target' must be str, got nothing"),
    "a text": ({"settings": {"target": "t.py", "n": "many"}}, "'n' must be int, got 'many'"),
    "a truth": ({"settings": {"target": "t.py", "seed": True}}, "'seed' must be int, got True"),
}


def test_a_config_that_cannot_be_read_is_a_sentence(work: Path) -> None:
    assert fit("run", "--steps", 1).exit_code == 0
    path = Path("run/config.json")
    config = json.loads(path.read_text())
    for case, (change, message) in CONFIGS.items():
        trust = () if case == "edited" else ("--trust-target",)
        text = json.dumps(config | change) if isinstance(change, dict) else change
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        for command in (("fit", "--resume", "--run-dir", "run"), ("sample", "run")):
            refused(run(*command, *trust), message)
    path.write_text(json.dumps({k: v for k, v in config.items() if k != "estimator"}))
    refused(run("sample", "run", "--trust-target"), "has no 'estimator'")
    path.unlink()
    refused(run("sample", "run"), "has no config.json")


def test_settings_take_whole_numbers_for_any() -> None:
    made = settings.Settings.from_config({"target": "t.py", "learning_rate": 1, "truncate": "inf"})
    assert (made.learning_rate, made.truncate) == (1, math.inf)


# Which file is run


def test_a_changed_target_file_is_run_only_if_trusted(work: Path) -> None:
    assert fit("run").exit_code == 0
    made_with = json.loads(Path("run/config.json").read_text())["target_sha256"]
    Path("target.py").write_text(
        TARGET.replace("REWARD = 1.0", "REWARD = 2.0\nimport pathlib; pathlib.Path('ran').touch()")
    )
    commands = (
        ("assess", "run", "-n", 2), ("sample", "run"), ("sample", "run", "--method", "importance"),
        ("fit", "--resume", "--run-dir", "run", "--steps", 5),
    )  # fmt: skip
    for command in commands:
        refused(run(*command), "the target file has changed", "--trust-target")
        assert not Path("ran").exists()
    for command in commands:
        done = run(*command, "--trust-target")
        assert done.exit_code == 0, done.output
        assert "the target file has changed" in done.stderr
    config = json.loads(Path("run/config.json").read_text())  # the resumed run is made with it
    assert config["earlier_target_sha256"] == [made_with]
    assert run("sample", "run", "-n", 1).exit_code == 0
    Path("target.py").unlink()
    refused(run("sample", "run"), "is not there any more")


# Ends


def test_a_fit_whose_steps_were_all_skipped_fails(work: Path) -> None:
    Path("target.py").write_text(TARGET.replace("REWARD = 1.0", "REWARD = 0.0"))
    done = fit("run", "--estimator", "reinforce")
    refused(done, "all 4 steps were skipped", "the policy is still the prior", code=1)
    assert not Path("run/policy").exists()
    assert metrics.read(runs.RunFolder(Path("run")))["skipped"].tolist() == [1] * 4


def test_two_draws_are_assessed(work: Path) -> None:
    done = fit("run", "--n-assess", 2, "--steps", 1)
    assert done.exit_code == 0, done.output
    assert Path("run/report.html").is_file()
