"""What the fuzzed command lines work on: good and bad targets, prompts, models and run folders.

`build` writes them into a folder; `TARGETS`, `PROMPTS`, `DAMAGES` say which.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAD = "import pyro, torch\nfrom infer_align.torch import score\nMAX_NEW_TOKENS = 3\n"
REWARD = "def reward(prompts, completions):\n    return [float('a' in c) for c in completions]\n"
PROGRAM = """
def target(lm):
    def program(prompts=None):
        y = pyro.sample("y", lm(prompts))
        pyro.factor("reward", {value})
    return program
"""
NUMPYRO = "import jax.numpy as jnp, numpyro, numpyro.distributions as dist\n"
DRAW = 'y = numpyro.sample("y", dist.CategoricalProbs(jnp.array([.5, .3, .2])))'


def factor(value: str, more: str = "") -> str:
    """A target file whose factor has this value."""
    return HEAD + REWARD + more + PROGRAM.format(value=value)


def jax_factor(value: str, more: str = "", draw: str = DRAW) -> str:
    """A NumPyro target file whose factor has this value."""
    body = f'    {draw}\n    numpyro.factor("r", {value})\n'
    return NUMPYRO + more + f"def target():\n  def program():\n{body}  return program\n"


SCORED = "score(reward, y, lm, prompts)"
GOOD_TARGETS = {
    "good": factor(SCORED, "PROMPTS = ['a b', 'c']\nBETA = 1.0\n"),
    "features": factor(SCORED, "def features(lm):\n"
                       "    return {'reward': lambda y, *_: (y == 1).sum(-1).double()}\n"),
    "dirty": factor(SCORED, "PROMPTS = ['a \\x1b[2J$\\\\frac$ \\u202e']\n"),
    "condition": factor("torch.where((y == 1).any(-1), 0.0, -torch.inf)"),
}  # fmt: skip
GOOD_NUMPYRO = {"jax": jax_factor("1.0 * y"), "jax_beta": jax_factor("y / 0.5", "BETA = 0.5\n")}
BAD_TARGETS = {
    "syntax": "def target(lm:\n", "empty": "", "null": "x = 1\0\n", "latin": "x = '\xe9'\n",
    "deep": f"x = {'(' * 3000}1{')' * 3000}\n", "raises": "raise ValueError('no \\x1b[2J')\n",
    "exits": "import sys\nsys.exit(0)\n", "exits_late": HEAD + "def target(lm):\n    exit(0)\n",
    "missing_module": "import no_such_module_here\n", "number": "target = 3\n",
    "interrupts": "raise KeyboardInterrupt\n", "generator_exit": "raise GeneratorExit\n",
    "recursion": "def target(lm):\n    return target(lm)\n",
    "two_arguments": "def target(lm, other):\n    return None\n",
    "keywords": "def target(*, lm):\n    return None\n", "builtin": "target = dict\n",
    "a_class": "class target:\n    def __init__(self, lm):\n        self.lm = lm\n",
    "returns_none": "def target(lm):\n    return None\n",
    "coroutine": "async def target(lm):\n    return None\n",
    "generator": "def target(lm):\n    yield 1\n",
    "odd_error": "class E(Exception):\n    def __str__(self):\n        raise E\nraise E\n",
    "long_error": "raise ValueError('x' * 10**6)\n",
    "surrogate_error": "raise ValueError('\\udcff \\x9b')\n",
    "closes_stdout": "import sys\nsys.stdout.close()\nsys.stderr.close()\n",
    "prints": "print('\\u2713 \\u4e2d')\n" + factor(SCORED),
    "nan": factor("torch.nan * y.sum(-1)"), "inf": factor("torch.inf + y.sum(-1)"),
    "nothing": factor("-torch.inf + 0.0 * y.sum(-1)"), "complex": factor("1j * y.sum(-1)"),
    "shape": factor("y"), "text_value": factor("'a'"), "none_value": factor("None"),
    "reward_exits": factor("exit(0)"), "reward_raises": factor("1 / 0"),
    "reward_short": factor("score(lambda prompts, completions: [1.0], y, lm, prompts)"),
    "reward_text": factor("score(lambda prompts, completions: 'ab', y, lm, prompts)"),
    "reward_none": factor("score(lambda prompts, completions: None, y, lm, prompts)"),
    "reward_alone": factor("score(lambda completions: [1.0] * len(completions), y, lm, prompts)"),
    "no_sample": HEAD + "def target(lm):\n    return lambda prompts=None: None\n",
    "column": HEAD + "def target(lm):\n    def program(prompts, topic):\n"
              "        pyro.sample('y', lm(prompts))\n    return program\n",
    "needs_prompts": HEAD + "def target(lm):\n    def program(prompts):\n"
                     "        y = pyro.sample('y', lm(prompts))\n"
                     "        pyro.factor('r', y.sum(-1) * len(prompts[0]) * 1.0)\n"
                     "    return program\n",
    **{f"prompts_{k}": factor(SCORED, f"PROMPTS = {v}\n") for k, v in {
        "text": "'a b'", "number": "3", "none_in": "[None, 'a']", "empty": "[]",
        "float": "[1.5]", "ids": "[[1, 2]]", "far_ids": "[[10**9]]", "blank": "['']",
        "lone": "['\\ud800']", "dict": "{'a': 1}"}.items()},
    **{f"beta_{k}": factor(SCORED, f"BETA = {v}\n") for k, v in {
        "text": "'x'", "nan": "float('nan')", "zero": "0", "below": "-1.0",
        "huge": "1e400"}.items()},
    **{f"length_{k}": factor(SCORED) + f"MAX_NEW_TOKENS = {v}\n" for k, v in {
        "text": "'x'", "zero": "0", "huge": "10**12", "float": "2.5", "none": "None"}.items()},
    **{f"model_{k}": factor(SCORED) + f"def model({a}):\n    return {v}\n" for k, a, v in [
        ("none", "", "None"), ("argument", "x", "None"), ("raises", "", "1 / 0"),
        ("exits", "", "exit()")]},
    **{f"features_{k}": factor(SCORED) + f"def features({a}):\n    return {v}\n" for k, a, v in [
        ("none", "lm", "None"), ("argument", "", "{}"), ("number", "lm", "{'x': 1}"),
        ("raises", "lm", "{'x': lambda y, *_: 1 / 0}"), ("list", "lm", "[len]"),
        ("nan", "lm", "{'x': lambda y, *_: torch.nan * y.sum(-1)}"),
        ("dirty", "lm", "{'\\x1b[2J$': lambda y, *_: y.sum(-1) * 1.0}"),
        ("slash", "lm", "{'a/b': lambda y, *_: y.sum(-1) * 1.0}")]},
    "twist": factor(SCORED) + "def twist(lm):\n    return 1\n",
    "reference": factor(SCORED) + "REFERENCE = print()\n",
}  # fmt: skip
BAD_NUMPYRO = {
    "jax_nan": jax_factor("jnp.nan * y"),
    "jax_inf": jax_factor("jnp.inf + y"),
    "jax_nothing": jax_factor("-jnp.inf + y"),
    "jax_raises": jax_factor("1 / 0"),
    "jax_exits": jax_factor("exit(0)"),
    "jax_text": jax_factor("'a'"),
    "jax_shape": jax_factor("jnp.zeros((2, 3)) + y"),
    "jax_traced": jax_factor("float(y)"),
    "jax_branch": jax_factor("1.0 if y > 1 else 0.0"),
    "jax_normal": jax_factor("y", draw='y = numpyro.sample("y", dist.Normal(0, 1))'),
    "jax_folded": jax_factor(
        "y", draw='y = numpyro.sample("y", dist.FoldedDistribution(dist.Normal(0, 1)))'
    ),
    "jax_poisson": jax_factor("0.1 * y", draw='y = numpyro.sample("y", dist.Poisson(3.0))'),
    "jax_big": jax_factor(
        "y.sum(-1)",
        draw='y = numpyro.sample("y", dist.Bernoulli(0.5 * jnp.ones(60)).to_event(1))',
    ),
    "jax_improper": jax_factor(
        "y", draw='y = numpyro.sample("y", dist.Categorical(jnp.array([jnp.nan, 0.5])))'
    ),
    "jax_none": NUMPYRO + "def target():\n    return None\n",
    "jax_plain": NUMPYRO + "def target():\n    return lambda: 3\n",
    "jax_argument": NUMPYRO + "def target():\n    return lambda x: numpyro.factor('r', x)\n",
}
PROMPTS: dict[str, bytes] = {
    "good.txt": b"a b\nc\n", "bom.txt": b"\xef\xbb\xbfa b\r\nc\r\n",
    "marks.txt": "a\u2028b\n\x85c\x0c\n".encode(), "null.txt": b"a\0b\n", "empty.txt": b"",
    "blank.txt": b"\n \n", "utf16.txt": b"\xff\xfea\0", "latin.txt": b"\xe9\n",
    "long.txt": b"a " * 200_000 + b"\n", "dirty.txt": b"a \x1b[2J \xe2\x80\xae $\\frac$\n",
    "good.jsonl": b'{"prompt": "a", "topic": "b"}\n{"prompt": "b c", "topic": "c"}\n',
    "kinds.jsonl": b'{"prompt": null}\n{"prompt": [1, 2]}\n',
    "chat.jsonl": b'{"prompt": [{"role": "user", "content": "a b"}]}\n',
    "bad_chat.jsonl": b'{"prompt": [{"rol": 3}]}\n', "number.jsonl": b'{"prompt": 3}\n',
    "deep.jsonl": b"[" * 100_000 + b"\n", "lone.jsonl": b'{"prompt": "\\ud800"}\n',
    "list.jsonl": b"[1, 2]\n", "cut.jsonl": b'{"prompt": "a"\n', "nan.jsonl": b'{"prompt": NaN}\n',
    "digits.jsonl": b'{"prompt": ' + b"9" * 5000 + b"}\n", "far.jsonl": b'{"prompt": [99]}\n',
    "columns.jsonl": b'{"prompt": "a", "x": 1}\n{"prompt": "b"}\n',
    "before.txt": b"a\n", "prompts.csv": b"prompt\na\n",
}  # fmt: skip


def build(folder: Path) -> None:
    """Write the files, a tiny model with damaged copies of it, and a good run's ingredients."""
    from tests.lm_zoo import tiny_model, tiny_tokenizer

    (folder / "t").mkdir(parents=True)
    for name, text in {**GOOD_TARGETS, **GOOD_NUMPYRO, **BAD_TARGETS, **BAD_NUMPYRO}.items():
        encoding = "latin-1" if name == "latin" else "utf-8"
        (folder / "t" / f"{name}.py").write_text(text, encoding=encoding)
    (folder / "t" / "folder.py").mkdir()
    (folder / "t" / "notes.txt").write_text("no Python")
    for name, raw in PROMPTS.items():
        (folder / name).write_bytes(raw)
    tiny_model("gpt2").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    for name in ("no_weights", "cut_weights", "bad_config", "list_config"):
        shutil.copytree(folder / "model", folder / name)
    weights = "model.safetensors"
    (folder / "no_weights" / weights).unlink()
    whole = (folder / "model" / weights).read_bytes()
    (folder / "cut_weights" / weights).write_bytes(whole[: len(whole) // 2])
    (folder / "bad_config" / "config.json").write_text("{")
    (folder / "list_config" / "config.json").write_text("[]")
    (folder / "void").mkdir()
    (folder / "a_file").write_text("x")


def _unlink(name: str) -> Callable[[Path], object]:
    def damage(run: Path) -> None:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    return damage


def _write(name: str, raw: bytes) -> Callable[[Path], object]:
    return lambda run: (run / name).write_bytes(raw)


def _cut(name: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        for path in filter(Path.is_file, sorted(run.glob(name))):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def _edit(**changes: object) -> Callable[[Path], None]:
    """Change settings of the config; a value of ``...`` takes one away."""

    def damage(run: Path) -> None:
        config = json.loads((run / "config.json").read_text())
        config["settings"].update(changes)
        config["settings"] = {k: v for k, v in config["settings"].items() if v is not ...}
        (run / "config.json").write_text(json.dumps(config))

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "none": lambda run: None,
    "config gone": _unlink("config.json"), "config cut": _cut("config.json"),
    "config empty": _write("config.json", b""), "config a list": _write("config.json", b"[]"),
    "config no object": _write("config.json", b'{"settings": 3}'),
    "config deep": _write("config.json", b"[" * 100_000),
    "n a text": _edit(n="x"), "n below": _edit(n=-1), "target gone": _edit(target="gone.py"),
    "target a number": _edit(target=3), "no target": _edit(target=...), "steps": _edit(steps={}),
    "model gone": _edit(model="nowhere"), "unknown estimator": _edit(estimator="x"),
    "device": _edit(device="moon"), "dtype": _edit(dtype="int8"), "seed": _edit(seed=-5),
    "metrics gone": _unlink("metrics.jsonl"), "metrics cut": _cut("metrics.jsonl"),
    "metrics bad": _write("metrics.jsonl", b"[1]\n\xff\n"),
    "policy gone": _unlink("policy"), "policy cut": _cut("policy/*.safetensors"),
    "policy config": _cut("policy/*.json"), "checkpoint gone": _unlink("checkpoint"),
    "checkpoint cut": _cut("checkpoint/*"), "both gone": lambda run: [
        _unlink(name)(run) for name in ("policy", "checkpoint")] and None,
    "tree cut": _cut("assessment_before.nc"), "tree bad": _write("assessment_before.nc", b"x"),
}  # fmt: skip
