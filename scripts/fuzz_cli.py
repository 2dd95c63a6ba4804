"""Fuzz the command line: `python scripts/fuzz_cli.py --count 2000 --processes 100 --seed 0`.

Command lines are drawn from the options that Typer knows, with good and bad values, target and
prompt files, models and run folders (scripts/fuzz_world.py), and run in this process, some as
processes of their own. A fault is a traceback, 60 seconds without an end, an exit status that is
not documented, a failure without a message, a success that did nothing, control characters in the
output, or JSON that is not strict. Exits with 1 if there is any; each is printed with the line
that shows it again (`--only NUMBER`).
"""

import argparse
import contextlib
import inspect
import io
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import typing
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts import fuzz_world as world  # noqa: E402

LIMIT, BUSY = 60, 8
"""Seconds of the processor after which a command hangs; by the clock, so many times more."""
DRAWN = 4
"""Figures are drawn on every so manieth line; they take most of a small run's time."""
STATUSES = (0, 1, 2, 130, 141)
MODELS = ("two_peaks", "memoryless_ternary", "asymmetric_bandit", "tiny_gpt2", "ensemble_reward")
COMMANDS = {"fit": 6, "assess": 3, "sample": 6, "exact": 5, "models": 1, "demo": 1}
SMALL = {
    "fit": ["--model", "model", "--dtype", "float64", "-n", "4", "--steps", "2", "--n-assess", "8",
            "--lora", "2", "--threads", "1"],
    "assess": ["-n", "8", "--threads", "1"], "sample": ["-n", "3", "--threads", "1"],
    "exact": [], "models": [], "demo": ["--model", "tiny_gpt2", "--threads", "1"],
}  # fmt: skip
"""First on each line: later ones of the same name replace them."""
INTEGERS = (1, 2, 3, 5, 8)
BAD_INTEGERS = ("0", "-1", "1.5", "x", "", "nan", "9" * 20, str(2**63), "-" + "9" * 30, "1e3")
FLOATS = ("0.5", "1", "2.5", "1e-3", "0")
BAD_FLOATS = ("nan", "inf", "-inf", "1e308", "-1e308", "1e-320", "-1", "x", "", "1e999")
JUNK = ("", "x", "\x1b[2J", "é中", "~nouser/x.py", "a" * 5000, "-", "/dev/null", ".", "/", "..",
        "$(x)", "t", ":", "a:b", "\udcff", "nan", "[1]", "%s", "{}")  # fmt: skip
CHOICES = {
    "estimator": ("f_dpg", "reinforce", "vargrad", "trajectory_balance"),
    "divergence": ("forward_kl", "reverse_kl", "jeffreys", "pearson_chi2", "alpha:0.5", "alpha:nan",
                   "alpha:1e308", "alpha:", "generalized_jensen_shannon:0.3",
                   "generalized_jensen_shannon:7", "total_variation:1", "alpha:0.5:2"),
    "baseline": ("leave_one_out", "none", "mean", "running", "dpg"),
    "log_z": ("batch", "running", "per_context", "learnt", "0.5", "nan", "inf", "1e308"),
    "schedule": ("constant", "linear"), "dtype": ("float32", "float64", "bfloat16", "int8"),
    "device": ("cpu", "cuda", "cuda:99", "meta", "mps", "cpu:1"),
    "p": ("0.5,0.3,0.2", "0.5,0.5", "1", "0.5,nan", "0,0", "-1,2", "0.5,,0.5", "1e-400,1", "x",
          "0.5,0.5,0.5", "1/3,2/3", "0.1," * 20 + "0.1"),
    "r": ("0,1,2", "0,1", "-1.61,-1.2,-0.69", "nan,1,2", "inf,0,1", "1e308,0,-1e308", "0,0,0",
          "1e-320,0,1", "0,1,", "9" * 400 + ",0,1", "1/3,0,1", "1e400,0,1"),
    "q": ("0.2,0.3,0.5", "0,0.5,0.5", "nan,1,2", "-1,1,1"),
    "m": ("1,5", "2", "10", "0", "-1", "1.5", "9" * 20, "1e9", "nan", ",", "inf"),
    "delta": ("0.05", "0.05,0.2", "0", "-1", "nan", "inf", "1e308", "1e-300", "x", ","),
    "n": ("1,2", "4", "0", "-1", "nan", "inf", "1e308", "x", "1.5", "9" * 30),
    "method": ("rejection", "quasi-rejection", "importance", "resampling", "metropolis",
               "local-metropolis", "smc"),
    "model": ("model", "no_weights", "cut_weights", "bad_config", "list_config", "void", "a_file",
              "no/such-model", "gone.gguf"),
    "run_dir": ("out", "void", "a_file", "model", "run", "a_file/x", "/proc/x", "out/deep/er"),
    "out": ("plots", "a_file", "a_file/x", "/proc/x", "void"),
}  # fmt: skip
OF_TARGET = ["--model", "model", "--dtype", "float64"]
SHARED = ("divergence", "baseline", "log_z", "p", "r", "q", "m", "delta")
"""Choices that are texts wherever they stand; others depend on the command."""


@dataclass
class Line:
    """A command line, and what it did."""

    number: int
    arguments: list[str]
    damage: str = "none"
    encoding: str = "utf-8"
    status: int | None = None
    out: str = ""
    err: str = ""
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    @property
    def command(self) -> str:
        """The first argument that is a command."""
        return next((a for a in self.arguments if a in COMMANDS), "")


class Option(NamedTuple):
    """An option of a command."""

    name: str
    flags: tuple[str, ...]
    is_switch: bool
    kind: str


class Hang(BaseException):
    """Raised by the alarm."""


def draw(number: int, seed: int, options: dict[str, list[Option]]) -> Line:
    """The command line of that number: of a seed of its own, so that it can be shown again."""
    rng = random.Random(f"{seed}:{number}")
    if rng.random() < 0.03:
        return Line(number, [rng.choice((*JUNK, "--help", "--version", "--debug", "fits"))
                             for _ in range(rng.randrange(3))])  # fmt: skip
    command = rng.choices(list(COMMANDS), weights=list(COMMANDS.values()))[0]
    sensible = rng.random() < 0.6
    subject = _subject(command, rng, sensible=sensible)
    arguments = [command, *subject]
    if "--resume" not in subject:
        arguments += SMALL[command]
    if command == "sample" and any(a.endswith(".py") and "jax" not in a for a in subject):
        arguments += OF_TARGET
    if command in ("fit", "assess", "sample") and rng.random() < 0.25:
        names = ("good.txt", "bom.txt", "marks.txt", "dirty.txt", "kinds.jsonl", "chat.jsonl")
        arguments += ["--prompts", rng.choice(names if sensible else list(world.PROMPTS))]
    allowed = [x for x in options[command] if not sensible or _belongs(x.name, arguments)]
    for option in rng.sample(allowed, k=min(len(allowed), _few(rng))):
        arguments += _option(command, option, rng, sensible=sensible)
    damage = rng.choice(list(world.DAMAGES)) if "run" in arguments else "none"
    encoding = rng.choice(("utf-8", "utf-8", "latin-1", "ascii", "cp1252"))
    return Line(number, arguments, damage if rng.random() < 0.5 else "none", encoding)


def _belongs(name: str, arguments: list[str]) -> bool:
    """Whether an option can be used on the line so far."""
    from infer_align.cli import methods

    if name in ("help", "model", "dtype", "device", "full", "resume", "overwrite", "run_dir"):
        return False
    if arguments[0] == "exact":
        letters = ("memoryless", "p", "r", "q", "m", "whole_n")
        return name not in letters and (name != "n" or "--memoryless" not in arguments)
    if arguments[0] == "sample":
        method = arguments[arguments.index("--method") + 1] if "--method" in arguments else None
        own = {x for names in methods.READS.values() for x in names}
        return name not in own or name in methods.READS.get(method or "", ())
    return True


def _few(rng: random.Random) -> int:
    return rng.choices((0, 1, 2, 3, 6), weights=(4, 4, 3, 2, 1))[0]


def _subject(command: str, rng: random.Random, *, sensible: bool) -> list[str]:
    """The positional argument, and the flags that belong to it."""
    if rng.random() < 0.05 and not sensible:
        return [rng.choice(JUNK)] if rng.random() < 0.8 else []
    if command in ("models", "demo"):
        return [rng.choice((*MODELS, "x"))] if command == "models" and rng.random() < 0.7 else []
    if command == "assess" or (command == "sample" and rng.random() < 0.35):
        method = ["--method", rng.choice(CHOICES["method"])] if command == "sample" else []
        places = ("run", "run", "void", "gone", "model", "a_file")
        return ["run" if sensible else rng.choice(places), *method[: 2 * rng.randrange(2)]]
    if command == "fit" and rng.random() < 0.15:
        return ["--resume", "--run-dir", "run", "--steps", rng.choice(("3", "4", "5", "6"))]
    if command == "exact" and rng.random() < 0.4:
        k = rng.randrange(2)
        model = {"p": CHOICES["p"][k], "r": CHOICES["r"][k]}
        model |= {name: rng.choice(CHOICES[name][:3]) for name in ("m", "delta")}
        return ["--memoryless", *(f"--{k}={v}" for k, v in model.items())]
    good = list(world.GOOD_TARGETS) if command != "exact" else list(world.GOOD_NUMPYRO)
    both = (*world.BAD_TARGETS, *world.BAD_NUMPYRO, *world.GOOD_NUMPYRO, *world.GOOD_TARGETS)
    if rng.random() < 0.12:
        path = str(ROOT / "models" / f"{rng.choice(MODELS)}.py")
    else:
        path = f"t/{rng.choice(good if rng.random() < 0.5 + sensible / 4 else both)}.py"
    if rng.random() < 0.08 and not sensible:
        path = rng.choice((path + ":", path + ":gone", "t/folder.py", "t/notes.txt", "t/none.py"))
    extra = []
    if command == "sample":
        method = rng.choice(CHOICES["method"])
        extra = ["--method", method]
        extra += ["--acceptance-rate", "0.5"] if method == "quasi-rejection" else []
    return [path, *extra]


def _option(command: str, option: Option, rng: random.Random, *, sensible: bool) -> list[str]:
    """A flag, with a value where it takes one."""
    flag = rng.choice(option.flags)
    if option.is_switch or flag in ("--help", "-h"):
        return [flag] if flag not in ("--help", "-h") or rng.random() < 0.2 else []
    name = option.name
    values: tuple[Any, ...]
    if name == "model" and command == "demo":
        values = ("tiny_gpt2", "x", "")
    elif name in CHOICES and (name in SHARED or "int" not in option.kind):
        values = CHOICES[name]
    elif name == "prompts":
        values = tuple(world.PROMPTS)
    elif "int" in option.kind:
        values = INTEGERS if sensible or rng.random() < 0.4 else BAD_INTEGERS
    elif "float" in option.kind:
        values = FLOATS if sensible or rng.random() < 0.4 else BAD_FLOATS
    else:
        values = JUNK
    value = str(rng.choice(JUNK if rng.random() < 0.1 and not sensible else values))
    if name == "m" and command == "exact" and value in JUNK:
        value = "1"
    return [f"{flag}={value}"] if flag.startswith("--") else [flag, value]


def options_of_commands() -> dict[str, list[Option]]:
    """Every option of every command, from Typer's own tree, and its kind from the function."""
    import typer.main

    from infer_align.cli import app

    group: Any = typer.main.get_command(app)
    context = group.make_context("infer-align", [], resilient_parsing=True)
    callbacks: list[Any] = [c.callback for c in app.registered_commands]
    functions = {callback.__name__: callback for callback in callbacks}
    found = {}
    for name, command in group.commands.items():
        parameters = inspect.signature(functions[name]).parameters
        kinds = {p.name: str(typing.get_args(p.annotation)[:1]) for p in parameters.values()}
        found[name] = [
            Option(p.name, tuple(p.opts), p.is_flag, kinds.get(p.name, ""))
            for p in command.get_params(context)
            if p.param_type_name == "option"
        ]
    return found


@contextlib.contextmanager
def few_figures(line: Line) -> Iterator[None]:
    """Draw no figure, except on every so manieth line."""
    from unittest import mock

    from infer_align.cli import assessment_figures, exact_figures, figures

    if line.number % DRAWN == 0:
        yield
        return
    with contextlib.ExitStack() as stack:
        for module in (figures, assessment_figures):
            stack.enter_context(mock.patch.object(module, "svg", return_value="<svg></svg>"))
        save = mock.patch.object(exact_figures, "_save", lambda paint, report, path: path)
        stack.enter_context(save)
        yield


@contextlib.contextmanager
def place(line: Line, home: Path) -> Iterator[Path]:
    """A copy of the world to be spoilt by one line."""
    with tempfile.TemporaryDirectory(prefix="line", dir=home.parent) as name:
        folder = Path(name) / "w"
        shutil.copytree(home, folder)
        world.DAMAGES[line.damage](folder / "run")
        before = Path.cwd()
        os.chdir(folder)
        try:
            yield folder
        finally:
            os.chdir(before)


def run_here(line: Line, home: Path) -> None:
    """Run a line in this process."""
    from infer_align.cli import app

    def alarm(*_: Any) -> None:
        line.faults.append(f"hangs for {LIMIT} s\n{''.join(traceback.format_stack(limit=30))}")
        signal.alarm(LIMIT)  # in case that this is caught
        raise Hang

    raw = [io.BytesIO(), io.BytesIO()]
    streams = [io.TextIOWrapper(r, encoding=line.encoding, write_through=True) for r in raw]
    keep, environment = (sys.stdout, sys.stderr), dict(os.environ)
    old = [signal.signal(s, alarm) for s in (signal.SIGALRM, signal.SIGPROF)]
    with place(line, home) as folder, few_figures(line):
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, LIMIT)  # of a quiet machine
        signal.alarm(BUSY * LIMIT)
        try:
            sys.stdout, sys.stderr = streams
            app(line.arguments, prog_name="infer-align")
            line.faults.append("came back instead of exiting")
        except SystemExit as stopped:
            line.status = stopped.code if isinstance(stopped.code, int) else 1
            line.status = 0 if stopped.code is None else line.status
        except Hang:
            pass
        except BaseException:
            line.faults.append(f"traceback\n{traceback.format_exc()[-3000:]}")
        finally:
            signal.alarm(0)
            signal.setitimer(signal.ITIMER_PROF, 0)
            for number, handler in zip((signal.SIGALRM, signal.SIGPROF), old, strict=True):
                signal.signal(number, handler)
            sys.stdout, sys.stderr = keep
            for name in set(os.environ) - set(environment):
                del os.environ[name]
            os.environ.update(environment)
        line.seconds = time.process_time() - start
        line.out, line.err = (_text(r, s, line.encoding) for r, s in zip(raw, streams, strict=True))
        judge(line, folder)


def _text(raw: io.BytesIO, stream: io.TextIOWrapper, encoding: str) -> str:
    if raw.closed:
        return ""
    with contextlib.suppress(ValueError):
        stream.flush()
    return raw.getvalue().decode(encoding)


def run_as_process(line: Line, home: Path) -> None:
    """Run a line as a real command."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": line.encoding}
    command = [sys.executable, "-m", "infer_align.cli", *line.arguments]
    with place(line, home) as folder:
        start = time.monotonic()
        try:
            done = subprocess.run(command, env=environment, capture_output=True, cwd=folder,
                                  timeout=BUSY * LIMIT)  # fmt: skip
        except subprocess.TimeoutExpired:
            line.faults.append(f"hangs for {BUSY * LIMIT} s, as a process")
            return
        line.seconds, line.status = time.monotonic() - start, done.returncode
        line.out, line.err = done.stdout.decode(line.encoding), done.stderr.decode(line.encoding)
        judge(line, folder)


def judge(line: Line, folder: Path) -> None:
    """Find what is wrong with what a line did."""
    if line.faults:
        return
    debug = "--debug" in line.arguments
    closed = any("closes_stdout" in a for a in line.arguments)
    if "Traceback (most recent call last)" in line.out + line.err and not debug:
        line.faults.append("prints a traceback")
    if line.status not in STATUSES:
        line.faults.append(f"exit status {line.status}")
    said = line.err.strip() or closed or _usage(line) or "FAIL: " in line.out
    if line.status not in (0, 141) and not said:
        line.faults.append("fails without a message")
    bare = re.search(r"error: (the run stopped: )?\w+(Error|Exception)\b", line.err)
    if bare and not re.search(r", line \d+\)", line.err):
        line.faults.append("says the name of an exception, and of no file of the user's")
    from infer_align.cli.escapes import printable

    shown = (line.out + line.err).replace("\r\n", "\n")
    if printable(shown) != shown and not _usage(line):
        line.faults.append("prints control characters")
    if line.status == 0 and (reason := _did_nothing(line, folder)):
        line.faults.append(f"succeeds and did nothing: {reason}")


def _usage(line: Line) -> bool:
    """Typer's own messages and help."""
    return "Usage:" in line.err + line.out


def _did_nothing(line: Line, folder: Path) -> str | None:
    words = {a.partition("=")[0] for a in line.arguments}
    if words & {"--help", "-h", "--version"} or line.command in ("", "models"):
        return None if line.out.strip() else "nothing was printed"
    if line.command in ("fit", "demo"):
        runs = [p.parent for p in folder.rglob("config.json") if (p.parent / "policy").is_dir()]
        return None if runs else "there is no policy"
    if line.command == "assess":
        return None if list((folder / "run").glob("assessment_*.nc")) else "there is no assessment"
    if line.command == "exact" and "--json" not in words:
        return None if "nats" in line.out or "tilts" in line.out else "nothing was printed"
    lines = line.out.splitlines()
    if not lines:
        return "nothing was printed"
    try:
        for text in lines:
            json.loads(text, parse_constant=_no_json)
    except ValueError as error:
        return f"its output is no strict JSON: {error}"
    return None


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def prepare(home: Path) -> None:
    """The world, with a good run in it; nothing is asked of a hub."""
    os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", OMP_NUM_THREADS="1", COLUMNS="100")
    os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="0")  # as `job.set_up`, in time
    world.build(home)
    from infer_align.cli import demo
    from infer_align.exact import reports

    demo.SETTINGS["tiny_gpt2"] |= {"n": 8, "steps": 2, "n_assess": 16}
    reports.POINTS = 5
    first = Line(-1, ["fit", str(home / "t" / "good.py"), *SMALL["fit"], "--steps", "4",
                      "--run-dir", str(home / "run")])  # fmt: skip
    before = Path.cwd()
    os.chdir(home)
    try:
        from infer_align.cli import app

        app(first.arguments, prog_name="infer-align")
    except SystemExit as stopped:
        if stopped.code:
            raise RuntimeError("the good run failed") from stopped
    finally:
        os.chdir(before)


def fuzz(seed: int, numbers: list[int], processes: set[int], *, verbose: bool) -> list[Line]:
    """Run the lines of these numbers."""
    lines = []
    with tempfile.TemporaryDirectory(prefix="fuzz") as name, contextlib.ExitStack() as quiet:
        if not verbose:
            quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
        home = Path(name) / "home"
        prepare(home)
        quiet.pop_all().close()
        options = options_of_commands()
        for number in numbers:
            line = draw(number, seed, options)
            alone = number in processes and line.command != "demo"  # a real demo takes its time
            (run_as_process if alone else run_here)(line, home)
            lines.append(line)
            report(line, seed, verbose=verbose)
            if number % 50 == 49:
                print(f"{len(lines)} lines", file=sys.stderr, flush=True)
    return lines


def report(line: Line, seed: int, *, verbose: bool) -> None:
    """A fault with the line that shows it, and each line where that is wanted."""
    if not (line.faults or verbose):
        return
    text = shlex.join(line.arguments).encode("ascii", "backslashreplace").decode()
    print(f"{line.number} [{line.status}, {line.seconds:.1f} s, {line.damage}] {text[:600]}")
    for fault in line.faults:
        print(f"  FAULT {fault.encode('ascii', 'backslashreplace').decode()}")
    if verbose or line.faults:
        for stream in (line.out, line.err):
            print("  | " + stream[-800:].encode("ascii", "backslashreplace").decode()
                  .replace("\n", "\n  | "))  # fmt: skip
    if line.faults:
        print(f"  again: python scripts/fuzz_cli.py --seed {seed} --only {line.number}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=0, help="of them, as real processes")
    parser.add_argument("--only", type=int, nargs="*", help="these numbers, and show all")
    parser.add_argument("--slow", type=int, default=0, help="show the slowest lines")
    options = parser.parse_args()
    numbers = options.only or list(range(options.first, options.first + options.count))
    every = max(1, options.count // max(1, options.processes))
    processes = set(numbers[::every][: options.processes])
    start = time.monotonic()
    lines = fuzz(options.seed, numbers, processes, verbose=bool(options.only))
    for line in sorted(lines, key=lambda line: -line.seconds)[: options.slow]:
        print(f"{line.seconds:.1f} s: {line.number} {shlex.join(line.arguments)[:200]!a}")
    statuses = Counter(line.status for line in lines)
    faults = sum(bool(line.faults) for line in lines)
    print(f"{len(lines)} command lines, {len(processes)} as processes, seed {options.seed}, "
          f"{time.monotonic() - start:.0f} s: {faults} faults; by status "
          + ", ".join(f"{k}: {v}" for k, v in sorted(statuses.items(), key=str)))  # fmt: skip
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
