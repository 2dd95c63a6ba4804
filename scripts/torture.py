"""Kill runs of a tiny model at random file events, flip bits on their disks, and see what is lost.

    python scripts/torture.py [--kills 30] [--flips 12] [--seed 0]

A killed run must go on, or begin again, to the numbers of an undisturbed one, bit for bit. A
flipped bit must be named, or change nothing. Prints one line a trial and the counts; the exit
status is 1 if a trial failed. Needs `fork`, so that torch is loaded once.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

TARGET = """
import pyro
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from infer_align.torch import CausalLM

MAX_NEW_TOKENS = 3
BETA = 0.5

def model():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=5, n_positions=8, n_embd=8, n_layer=1, n_head=2,
                        bos_token_id=4, eos_token_id=4)
    return CausalLM(GPT2LMHeadModel(config).double(), None, max_new_tokens=3)

def target(lm):
    def program(prompts):
        y = pyro.sample("y", lm(prompts))
        pyro.factor("ones", (y == 1).double().sum(-1) / BETA)
    return program
"""
FIT = ("-n", "8", "--steps", "8", "--n-assess", "8", "--checkpoint-every", "2", "--lora", "2",
       "--reuse", "2", "--schedule", "linear")  # fmt: skip
SAMPLE = ("-n", "4", "--seed", "3")
MOST_STARTS = 6
"""Commands that a killed run may need; one that needs more makes no progress."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink")


class Done(NamedTuple):
    """How a command ended."""

    killed: bool
    code: int
    output: str
    events: int


class Events:
    """Counts what a process does to the files of a folder, and kills it at one of them."""

    def __init__(self, folder: Path, kill_at: int | None):
        self.folder, self.kill_at, self.count = str(folder.resolve()), kill_at, 0
        sync = os.fsync

        def counted(number: int) -> None:
            self.happened()
            sync(number)

        os.fsync = counted  # has no audit event of its own
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """One audit event of Python."""
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        if not writes and event not in CHANGES:
            return
        inside = arguments[-1] != -1 and event in ("os.remove", "os.rmdir")  # of shutil.rmtree
        path = arguments[0]
        if inside or (isinstance(path, str | Path) and self.folder in os.path.abspath(path)):
            self.happened()

    def happened(self) -> None:
        """Count, and die."""
        self.count += 1
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def command(folder: Path, *arguments: str, kill_at: int | None = None) -> Done:
    """Run infer-align in a fork of this process."""
    log, events = folder.with_name("log"), folder.with_name("events")
    events.unlink(missing_ok=True)
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        code = 1
        try:
            number = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(number, 1)
            os.dup2(number, 2)
            counted = Events(folder, kill_at)
            from infer_align.cli import app

            try:
                app(list(arguments), prog_name="infer-align")
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            events.write_text(str(counted.count))
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status)
    count = int(events.read_text()) if events.is_file() else 0
    text = log.read_text(encoding="utf-8", errors="replace")
    return Done(killed, -1 if killed else os.WEXITSTATUS(status), text, count)


def results(folder: Path) -> dict[str, Any]:
    """What a finished run comes to: weights, metrics without times, draws."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]
    kept = [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]
    drawn = command(folder, "sample", str(folder), *SAMPLE)
    return {
        "weights": (folder / "policy" / "adapter_model.safetensors").read_bytes(),
        "metrics": kept,
        "draws": drawn.output if drawn.code == 0 else f"exit {drawn.code}: {drawn.output}",
    }


def finished(folder: Path, target: Path, first: int, later: Iterator[int | None]) -> str | None:
    """Kill a new run, then go on as a user would, until it is done; what went wrong, or None."""
    fresh = ("fit", str(target), *FIT, "--run-dir", str(folder))
    done = command(folder, *fresh, kill_at=first)
    for _ in range(MOST_STARTS):
        if done.code == 0:
            return None
        if not done.killed and "Traceback" in done.output:
            return done.output
        kill = next(later)
        done = command(folder, "fit", "--resume", "--run-dir", str(folder), kill_at=kill)
        if done.code in (1, 2):  # nothing to go on from: as it says, begin again
            again = ("--overwrite",) if (folder / "run.json").exists() else ()
            done = command(folder, *fresh, *again)
    return f"not done after {MOST_STARTS} commands: {done.output}"


def kill_trials(work: Path, target: Path, count: int, rng: random.Random) -> Counter[str]:
    """Kill runs at random file events, half of them twice."""
    folder = work / "whole"
    whole = command(folder, "fit", str(target), *FIT, "--run-dir", str(folder))
    assert whole.code == 0, whole.output
    expected = results(folder)
    print(f"an undisturbed run has {whole.events} file events")
    found: Counter[str] = Counter()
    for trial in range(count):
        folder = work / f"killed_{trial}"
        first = rng.randint(1, whole.events)
        second = rng.randint(1, whole.events) if trial % 2 else None
        wrong = finished(folder, target, first, iter((second, *[None] * MOST_STARTS)))
        if wrong is None:
            got = results(folder)
            differs = [name for name, value in expected.items() if got[name] != value]
            wrong = f"other {', '.join(differs)}" if differs else None
            strays = [p.name for p in folder.iterdir() if "partial" in p.name or "lock" in p.name]
            wrong = f"left {strays}" if strays and wrong is None else wrong
        at = f"event {first}" + (f", then {second} of the resumed run" if second else "")
        print(f"kill {trial + 1:2d} at {at}: {'survived' if wrong is None else 'LOST: ' + wrong}")
        found["survived" if wrong is None else "lost"] += 1
        shutil.rmtree(folder)
    return found


def flip(path: Path, rng: random.Random) -> str:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    at, bit = rng.randrange(len(data)), rng.randrange(8)
    data[at] ^= 1 << bit
    path.write_bytes(data)
    return f"bit {bit} of byte {at}"


def flip_trials(work: Path, target: Path, count: int, rng: random.Random) -> Counter[str]:
    """Flip bits in runs that are complete, and in runs that were killed after a checkpoint."""
    from infer_align.cli.runs import RunFolder

    whole, half = work / "whole", work / "half"
    expected = results(whole)
    part = command(half, "fit", str(target), *FIT, "--run-dir", str(half))
    kill = part.events * 6 // 10
    shutil.rmtree(half)
    assert command(half, "fit", str(target), *FIT, "--run-dir", str(half), kill_at=kill).killed
    found: Counter[str] = Counter()
    seen: set[Path] = set()
    for trial in range(count):
        source = (whole, half)[trial % 2]
        folder = work / f"flipped_{trial}"
        shutil.copytree(source, folder)
        names = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size]
        fresh = [p for p in names if p.relative_to(folder) not in seen] or names
        path = rng.choice(fresh)
        seen.add(path.relative_to(folder))
        where = f"{flip(path, rng)} of {source.name}/{path.relative_to(folder)}"
        commands = [("fit", "--resume", "--run-dir", str(folder))]
        if source is whole:
            commands.insert(0, ("sample", str(folder), *SAMPLE))
        verdict = _judged(folder, path, commands, expected, RunFolder(folder))
        print(f"flip {trial + 1:2d}, {where}: {verdict}")
        found[verdict.partition(":")[0]] += 1
        shutil.rmtree(folder)
    return found


def _judged(
    folder: Path, path: Path, commands: list[tuple[str, ...]], expected: Any, run: Any
) -> str:
    """Whether a damage was named, or changed nothing that a command read."""
    noticed = path.suffix in (".nc", ".html") and not run.is_whole(path)
    said = f"run.json has another SHA-256 of {path.name}" if noticed else ""
    for arguments in commands:
        done = command(folder, *arguments)
        if "Traceback" in done.output:
            return f"LOST: {done.output}"
        if done.code:
            return f"detected: {done.output.strip().splitlines()[-1][:150]}"
        notes = [x for x in done.output.splitlines() if "damaged" in x or "not as the run" in x]
        said = said or next(iter(notes), "")[:150]
        if arguments[0] == "sample" and done.output != expected["draws"]:
            return "LOST: other draws, and not a word"
    got = results(folder)
    if said:
        return f"detected: {said}"
    differs = [name for name, value in expected.items() if got[name] != value]
    return f"LOST: other {', '.join(differs)}, and not a word" if differs else "survived"


def main() -> int:
    """All trials; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--flips", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import torch

    import infer_align.torch  # noqa: F401 (loaded once, before any fork)
    from infer_align.cli import assessment_figures, figures, pipeline  # noqa: F401

    torch.set_num_threads(1)  # a fork has none of its parent's threads
    for module in (figures, assessment_figures):
        vars(module)["svg"] = lambda *_, **__: ""  # most of a run's time, and of no interest here
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name).resolve()
        target = work / "target.py"
        target.write_text(TARGET)
        kills = kill_trials(work, target, options.kills, rng)
        flips = flip_trials(work, target, options.flips, rng)
    print(f"kills: {dict(kills)}; bit flips: {dict(flips)}")
    return int(kills["lost"] + flips["LOST"] > 0)


if __name__ == "__main__":
    sys.exit(main())
