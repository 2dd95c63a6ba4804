"""Parts of the command line that need no model: settings, files, the meter, the figures."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infer_align import divergences, estimators
from infer_align.cli import console, data, figures, job, loader, metrics, runs, settings
from infer_align.cli.errors import Stop, describe, explain
from infer_align.estimators import LogWeights


@pytest.mark.parametrize("name", settings.DIVERGENCES)
def test_every_divergence_has_its_name(name: str) -> None:
    assert settings.make_divergence(name).name == name


def test_all_divergences_of_the_library_can_be_named() -> None:
    families = {"alpha", "generalized_jensen_shannon"}
    named = {settings.make_divergence(n).name for n in settings.DIVERGENCES}
    others = {d.name.partition("(")[0] for d in divergences.ALL if d.name not in named}
    assert others <= families == set(settings.FAMILIES)
    assert settings.make_divergence("alpha:0.5").name == divergences.alpha(0.5).name


def test_settings_name_estimators() -> None:
    base = settings.Settings(target="t.py")
    assert base.n >= 2
    made = settings.make_estimator(base, 3)
    assert made.name == estimators.f_dpg(divergences.jensen_shannon).name
    for name in settings.ESTIMATORS:
        chosen = settings.Settings(target="t.py", estimator=name)
        assert settings.make_estimator(chosen, 3).name.startswith(name)
    for rule in (*settings.LOG_Z[:3], "-1.5"):
        settings.make_estimator(settings.Settings(target="t.py", log_z=rule), 3)
    for baseline in settings.BASELINES:
        settings.make_estimator(settings.Settings(target="t.py", baseline=baseline), 3)


def test_log_z_is_that_of_each_prompt() -> None:
    """Learnt by default in trajectory balance, one for each of three prompts, by their ids."""
    weights = LogWeights(
        np.array([[0.0, 1.0], [0.0, 1.0]]), np.zeros((2, 2)), context=np.array([0, 2])
    )
    chosen = settings.Settings(target="t.py", estimator="trajectory_balance")
    made = settings.make_estimator(chosen, 3)
    _, state, _ = made.update(made.init(), weights)
    np.testing.assert_allclose(state["log_z"]["log_z"], [0.0, 0.0, -0.05])  # .1 of 1 over 2
    by_turns = settings.Settings(target="t.py", log_z="running", prompts_per_step=2)
    with pytest.raises(Stop, match="take --log-z per_context"):
        settings.make_estimator(by_turns, 3)
    assert "running" in settings.make_estimator(by_turns, 2).name  # both at every step


def test_settings_survive_the_config() -> None:
    chosen = settings.Settings(target="t.py", lora=None, max_grad_norm=None, log_z="2.0")
    assert settings.Settings.from_config(chosen.record()) == chosen


def test_prompt_files(tmp_path: Path) -> None:
    text = tmp_path / "p.txt"
    text.write_text("one\n\n two \n")
    assert data.read_prompts(text) == (["one", " two "], {})
    lines = tmp_path / "p.jsonl"
    chat = [{"role": "user", "content": "hi"}]
    rows = [{"prompt": None, "x": 1}, {"prompt": chat, "x": 2}]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts, columns = data.read_prompts(lines)
    assert columns == {"x": [1, 2]}
    assert [data.label(p) for p in prompts] == ["(no prompt)", "hi"]
    for bad, message in (
        ("", "no prompt"),
        ("[1]\n", r"line 1: a JSON list; an object is needed"),
        ('{"x": 1}\n', "'prompt'"),
        ('{"prompt": "a"}\n{"prompt": "b", "y": 1}\n', "line 2"),
    ):
        lines.write_text(bad)
        with pytest.raises(Stop, match=message):
            data.read_prompts(lines)


NOT_ENDS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
"""Where `str.splitlines` cuts and a text file does not."""


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
def test_a_line_ends_at_its_end_only(tmp_path: Path, mark: bytes, end: str) -> None:
    prompts = [f"one{c}more" for c in NOT_ENDS] + ["a\rb", "last"]
    text, lines = tmp_path / "p.txt", tmp_path / "p.jsonl"
    text.write_bytes(mark + end.join(prompts).encode())  # without an end of the last line
    assert data.read_prompts(text) == (prompts, {})
    rows = [json.dumps({"prompt": p, "x": p}, ensure_ascii=False) + end for p in prompts]
    lines.write_bytes(mark + "".join(rows).encode())
    assert data.read_prompts(lines) == (prompts, {"x": prompts})


BAD_ROWS = {
    "a list": ("[1]", "line 2: a JSON list"),
    "null": ("null", "line 2: a JSON null"),
    "a boolean": ("true", "line 2: a JSON boolean"),
    "cut": ('{"prompt": "a', r"line 2: not JSON \(Unterminated string.*column 12"),
    "deep": ('{"prompt": ' + "[" * 100_000, "line 2: .*nested too deeply"),
    "many digits": ('{"prompt": ' + "1" * 5_000 + "}", "line 2: not JSON that can be read"),
    "half a pair": (r'{"prompt": "a\ud83d"}', r"line 2: \\ud83d is half of a surrogate pair"),
    "half a pair in a message": (
        r'{"prompt": [{"role": "user", "content": "\udc00"}]}', r"line 2: \\udc00 is half",
    ),
    "a number": ('{"prompt": 3}', "line 2: the prompt is of type int; it must be a text"),
    "an object": ('{"prompt": {"role": "user"}}', "line 2: the prompt is of type dict"),
    "an empty list": ('{"prompt": []}', "line 2: the prompt is an empty list"),
    "floats": ('{"prompt": [1, 2.5]}', r"line 2: 2\.5 in the prompt is no token id"),
    "booleans": ('{"prompt": [1, true]}', "line 2: True in the prompt is no token id"),
    "a message among ids": ('{"prompt": [1, {"role": "user"}]}', "is no token id"),
    "no role": ('{"prompt": [{"content": "hi"}]}', 'has no "role"'),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named(tmp_path: Path, case: str) -> None:
    row, message = BAD_ROWS[case]
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "good"}\n' + row + "\n", encoding="utf-8")
    with pytest.raises(Stop, match=message) as caught:
        data.read_prompts(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"good\ncaf\xe9\n", "line 2: not UTF-8 text .byte 0xe9"),
        ("good\n".encode("utf-16"), "line 1: not UTF-8 text .UTF-16"),
    ],
    ids=["latin-1", "UTF-16"],
)
def test_a_file_of_another_encoding_is_named(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(raw)
    with pytest.raises(Stop, match=message):
        data.read_prompts(path)


WRONG_PROMPTS = {
    "a text": ("one", "is of type str; it must be a list"),
    "a number": (5, "is of type int"),
    "a set": ({"a"}, "is of type set"),
    "empty": ([], "is empty"),
    "a chat": ([{"role": "user", "content": "hi"}], r"PROMPTS\[0\] .*the prompt is of type dict"),
    "token ids": ([1, 2], r"PROMPTS\[0\] .*the prompt is of type int"),
    "bytes": (["a", b"b"], r"PROMPTS\[1\] .*the prompt is of type bytes"),
    "floats": ([np.array([1.5])], r"PROMPTS\[0\] .*1\.5 in the prompt is no token id"),
}


@pytest.mark.parametrize("case", WRONG_PROMPTS)
def test_prompts_of_a_wrong_type_are_named(case: str) -> None:
    prompts, message = WRONG_PROMPTS[case]
    with pytest.raises(Stop, match=message):
        data.check_prompts(prompts, Path("t.py"))


def test_prompts_of_a_target_file() -> None:
    chat = [{"role": "user", "content": "hi"}]
    good = ("text", chat, [1, 2], np.array([3, 4]), None)
    assert data.check_prompts(good, Path("t.py")) == list(good)
    assert data.check_prompts(None, Path("t.py")) is None


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"x = '\xe9'\n", "utf-8"),
        (b"x = 1\0\n", "null bytes"),
        (b"x = " + b"-" * 200_000 + b"1\n", "t.py"),
        (b"x = 1\ny = (\n", "line 2"),
    ],
    ids=["latin-1", "null byte", "deep", "open"],
)
def test_a_target_file_that_is_no_python_is_named(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "t.py"
    path.write_bytes(raw)
    with pytest.raises(Stop, match=message):
        loader.read(path)


@pytest.mark.parametrize(
    "raw",
    [
        b"\xef\xbb\xbf" + '"""caf\xe9"""\ndef target(lm): ...\n'.encode(),
        '# coding: latin-1\n"""caf\xe9"""\ndef target(lm): ...\n'.encode("latin-1"),
        '"""caf\xe9"""\r\ndef target(lm): ...\r\n'.encode(),
    ],
    ids=["byte order mark", "cookie", "windows"],
)
def test_a_target_file_is_read_as_python_reads_it(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "t.py"
    path.write_bytes(raw)
    sheet = loader.read(path)
    assert (sheet.doc, sheet.functions) == ("caf\xe9", {"target": 1})
    assert loader.load(path).module.__doc__ == "caf\xe9"


def test_target_names_are_split() -> None:
    assert loader.split("a/b.py") == (Path("a/b.py"), "target")
    assert loader.split("a/b.py:posterior") == (Path("a/b.py"), "posterior")


def test_catalogue_is_read_not_run(root: Path) -> None:
    sheets = loader.catalogue()
    assert set(sheets) == {path.stem for path in (root / "models").glob("[!_]*.py")}
    assert all(sheet.headline for sheet in sheets.values())
    assert not sheets["tiny_gpt2"].is_numpyro()
    assert sheets["two_peaks"].is_numpyro()


def test_run_folder_metrics_are_strict_json_and_cut(tmp_path: Path) -> None:
    with runs.begun(tmp_path / "run", "t", overwrite=False) as (folder, _):
        with metrics.appending(folder, keep=0) as file:
            for step in (1.0, 2.0, 3.0):
                file.write({"step": step, "log_z": -math.inf, "x": math.nan})
            file.mark()
            file.write({"step": 4.0, "log_z": 1.0, "y": 7.0})
            file.file.write(b'{"step": 5, "lo')  # the power went
        whole = folder.metrics.read_bytes()
        assert b"Infinity" not in whole
        found = metrics.read(folder)
        assert found["step"].tolist() == [1, 2, 3, 4]
        assert found["log_z"].tolist() == [-math.inf] * 3 + [1]
        assert np.isnan(found["x"]).all()
        assert found["y"].tolist()[3] == 7
        assert np.isnan(found["y"][:3]).all()
        with metrics.appending(folder, keep=3) as file:
            assert file.lines == 3
        assert folder.metrics.read_bytes() == b"".join(whole.splitlines(keepends=True)[:3])
        with metrics.appending(folder, keep=2):
            pass
        assert len(metrics.read(folder)["step"]) == 2


def test_messages_say_where_in_the_users_file(tmp_path: Path) -> None:
    path = tmp_path / "t.py"
    path.write_text("def f():\n    return 1 / 0\n")
    space: dict = {}
    exec(compile(path.read_text(), str(path), "exec"), space)
    with pytest.raises(ZeroDivisionError) as caught:
        space["f"]()
    assert explain(caught.value) == f"ZeroDivisionError: division by zero (in f, {path}, line 2)"
    assert describe(caught.value)[1] == 1
    missing = ModuleNotFoundError("no", name="numpyro.infer")
    assert describe(missing) == (
        "numpyro.infer is not installed; it comes with: pip install 'infer_align[jax]'", 2,
    )  # fmt: skip


METRICS = {"log_potential": 1.0, "kl_prior": 0.5, "reverse_kl": 0.25, "forward_kl": 0.2, "ess": 0.5}


def test_meter_prints_few_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with console.meter("step", 100, done=10) as bar:
        for done in range(11, 101):
            bar.advance(done, console.live_text(METRICS))
    lines = capsys.readouterr().out.splitlines()
    assert 15 < len(lines) < 25
    assert lines[0].startswith("step 11/100  log-potential 1.000  KL(π‖prior) 0.500  KL(π‖p) 0.250")
    assert lines[-1].startswith("step 100/100")
    assert "left" in lines[-1]


def test_meter_draws_a_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with console.meter("step", 3) as bar:
        bar.advance(2, console.live_text(METRICS))
    out = capsys.readouterr().out
    assert "2/3" in out
    assert "ESS/n 0.500" in out


def test_smoothing_leaves_out_what_is_not_finite() -> None:
    values = np.array([1.0, math.inf, 3.0, math.nan, 5.0])
    assert figures.smooth(values).tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert np.isnan(figures.smooth(np.array([math.nan, math.nan]))).all()
    rng = np.random.default_rng(0)
    for n in (1, 2, 39, 40, 41, 200, 333):
        x = rng.normal(size=n)
        x[rng.random(n) < 0.2] = rng.choice([math.nan, math.inf, -math.inf])
        half = max(1, math.ceil(n / 20))
        windows = [x[max(0, i - half) : i + half + 1] for i in range(n)]
        means = [w[np.isfinite(w)].mean() if np.isfinite(w).any() else math.nan for w in windows]
        np.testing.assert_allclose(figures.smooth(x), means, rtol=1e-12, atol=1e-15)
    spike = np.ones(100)
    spike[50] = 1e200  # leaves the windows without it alone
    assert figures.smooth(spike)[[0, 44, 56, 99]].tolist() == [1, 1, 1, 1]


def test_many_points_are_drawn_as_a_picture() -> None:
    """Of 20,000 prompts as shapes: a megabyte and more."""
    x = np.random.default_rng(0).random(20_000)

    def draw(ax: Any) -> None:
        ax.plot(x, x, "o")
        ax.scatter(x, -x)
        ax.errorbar(x, x, yerr=x, fmt="o", capsize=2)

    text = figures.svg(draw, "many")
    assert len(text) < 300_000
    assert "data:image/png;base64" in text
    few = figures.svg(lambda ax: ax.plot(x[:100], x[:100], "o"), "few")
    assert "image/png" not in few


def test_a_million_steps_are_drawn_in_a_thousand_points() -> None:
    """By hand: stretches of 1,000 steps 0..999, 1000..1999 and on have means 499.5 + 1000 k."""
    thin = figures.thinned(np.arange(1e6))
    assert thin.tolist() == [499.5 + 1000 * k for k in range(1000)]
    assert figures.thinned(np.arange(1001.0))[[0, 1, -1]].tolist() == [0.5, 2.5, 1000]
    assert figures.thinned(np.array([1.0, math.nan])).tolist()[0] == 1
    assert len(figures.smooth(np.zeros(10**6))) == 10**6
    rows = {"step": np.arange(1.0, 1e6 + 1)}
    rows |= {name: np.random.default_rng(0).random(10**6) for name in METRICS}
    one = figures.svg(lambda ax: figures._kls(ax, rows), "one")
    assert len(one) < 300_000


def test_figures_take_the_pages_colours_and_unique_names() -> None:
    steps = np.arange(1.0, 30.0)
    rows = {"step": steps} | {name: np.full(29, value) for name, value in METRICS.items()}
    one = figures.svg(lambda ax: figures._kls(ax, rows), "one")
    two = figures.svg(lambda ax: figures._kls(ax, rows), "two")
    assert one.startswith("<svg")
    assert "currentColor" in one
    assert 'id="one-' in one
    assert figures.INK not in one
    ids = [set(re.findall(r'id="([^"]*)"', text)) for text in (one, two)]
    assert not ids[0] & ids[1]
    used = set(re.findall(r'(?:url\(|href=")#([\w-]*)', one))
    assert used <= ids[0]


@pytest.mark.parametrize("name", ["cuda", "mps", "meta", "vulkan", "privateuseone"])
def test_a_device_that_computes_nothing_is_refused(name: str) -> None:
    if name == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one here")
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("there is one here")
    with pytest.raises(Stop, match=f"--device {name}: this torch computes nothing there") as found:
        job._device(name)
    assert len(str(found.value)) < 240
    assert job._device("cpu") == torch.device("cpu")
