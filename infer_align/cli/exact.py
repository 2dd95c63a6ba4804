"""`infer-align exact`: what a small target, or a memoryless model, is exactly."""

import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from infer_align.cli import data
from infer_align.cli import options as o
from infer_align.cli.console import delivered, notice, others_aside, record, say
from infer_align.cli.errors import Stop, evaluating, reported
from infer_align.cli.loader import (
    Loaded,
    check_call,
    check_program,
    find,
    load_any,
    numpyro_program,
    split,
)
from infer_align.cli.tables import print_table

PANEL = "A memoryless model (--memoryless)"
Report = Mapping[str, Any]

Target = Annotated[
    str | None,
    typer.Argument(
        metavar="[TARGET.py[:name]]",
        help="File with `def target()`, a NumPyro program, or `def target(lm)` and `def model()`.",
        show_default=False,
    ),
]
Memoryless = Annotated[
    bool, o.opt("Independent letters with additive rewards.", "--memoryless", panel=PANEL)
]
Probs = Annotated[str | None, o.opt("Letter probabilities: 0.5,0.3,0.2.", "--p", panel=PANEL)]
Rewards = Annotated[
    str | None, o.opt("Letter rewards, as written: --r=-1.6,-1.2,-0.7.", "--r", panel=PANEL)
]
LogRewards = Annotated[
    str | None,
    o.opt(
        "Instead of --r, rewards log q: 0.2,0.3,0.5. Ties of products are exact.",
        "--q",
        panel=PANEL,
    ),
]
Lengths = Annotated[str | None, o.opt("Numbers of tokens: 1,10,50,200.", "--m", panel=PANEL)]
Deltas = Annotated[
    str | None, o.opt("KL budgets in nats per token, n = exp(m·delta): 0.05,0.2.", "--delta")
]
WholeN = Annotated[
    bool, o.opt("Best of the whole number below exp(m·delta).", "--whole-n", panel=PANEL)
]
Draws = Annotated[
    str | None,
    o.opt("n of best-of-n on a TARGET.py: 1,2,4,8. Default: powers of 2 to 128.", "--n"),
]
AsJson = Annotated[bool, o.opt("Print every number at full precision, and nothing else.", "--json")]
Out = Annotated[
    Path | None,
    o.path("Folder of the plots. Default: runs/exact-NAME; with --json none are drawn."),
]


@reported
def exact(
    target: Target = None,
    *,
    memoryless: Memoryless = False,
    p: Probs = None,
    r: Rewards = None,
    q: LogRewards = None,
    m: Lengths = None,
    delta: Deltas = None,
    whole_n: WholeN = False,
    n: Draws = None,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Solve a target exactly, and draw its reward/KL trade-off beside best-of-n.

    Either TARGET.py, whose outcomes can be listed or whose tokens are independent or Markov; or
    --memoryless with --p, --r (or --q), --m and --delta. Prints tables and writes plots: the
    frontier with best-of-n points; for memoryless targets also the simplex of three letters with
    the curve of tilts, rate functions, KL(best-of-n‖tilt) per token, and Rényi cross entropies.
    """
    if memoryless:
        if target is not None:
            raise Stop("--memoryless takes its model from --p and --r: leave TARGET.py out")
        if n is not None:
            raise Stop("--n belongs to TARGET.py; with --memoryless n is exp(m·delta)")
        with evaluating("the model of --p, --r, --m and --delta"):
            name, report = "memoryless", _memoryless(p, r, q, m, delta, whole_n=whole_n)
    else:
        if whole_n:
            raise Stop("--whole-n belongs to --memoryless; with TARGET.py --n says the numbers")
        with others_aside():
            name, report = _declared(target, given=(p, r, q, m), delta=delta, draws=n)
    if as_json:
        record(report)
    else:
        _print(report)
    if out is not None or not as_json:
        from infer_align.cli.exact_figures import draw

        folder = out or Path("runs") / f"exact-{name}"
        files = draw(report, folder)
        if files and not as_json:
            say(f"\nplots: {', '.join(str(file) for file in files)}")
    delivered()


def _memoryless(
    p: str | None, r: str | None, q: str | None, m: str | None, delta: str | None, *, whole_n: bool
) -> Report:
    if (r is None) == (q is None):
        raise Stop("give the rewards: --r, or --q for rewards log q, one of them")
    missing = [flag for flag, value in (("--p", p), ("--m", m), ("--delta", delta)) if not value]
    if missing:
        raise Stop(f"--memoryless needs {', '.join(missing)} as well: --p 0.5,0.3,0.2 --r=0,1,2 "
                   "--m 1,10,50 --delta 0.05,0.2")  # fmt: skip
    from infer_align.exact import log_rewards, reports

    rewards = _listed(r, "--r") if q is None else log_rewards(_listed(q, "--q"))
    return reports.memoryless(
        _listed(p, "--p"), rewards, _listed(m, "--m"), _listed(delta, "--delta"), whole_n=whole_n
    )


def _declared(
    target: str | None, *, given: Sequence[str | None], delta: str | None, draws: str | None
) -> tuple[str, Report]:
    if target is None:
        raise Stop("give TARGET.py, or --memoryless with --p, --r, --m and --delta")
    if any(x is not None for x in given):
        raise Stop("--p, --r, --q and --m belong to --memoryless; TARGET.py says its own")
    path, name = split(target)
    numpyro = find(path).is_numpyro(name)
    if numpyro:
        import jax

        jax.config.update("jax_enable_x64", True)  # noqa: FBT003 (this process is ours)
    numbers = [_number_of_draws(x) for x in _listed(draws or "1,2,4,8,16,32,64,128", "--n")]
    loaded = load_any(path, name)
    check_call(loaded.make, f"{path}:{name}", () if numpyro else ("lm",))
    beta = loaded.beta
    if beta is None:
        notice("the file has no BETA: rewards are log-potentials, at temperature 1")
        beta = 1.0
    kls = [] if delta is None else _listed(delta, "--delta")
    from infer_align.exact import reports

    with evaluating(f"{path}:{name}"):
        program, contexts = (numpyro_program(loaded), ()) if numpyro else _pyro(loaded)
        check_program(program, f"{path}:{name}")
        report = reports.declared(program, *contexts, scale=beta, kls=kls, draws=numbers)
    return path.stem, report


def _pyro(loaded: Loaded) -> tuple[Any, tuple[Any, ...]]:
    """A program over the file's own language model, and the prompt it is solved for."""
    from infer_align.cli.job import own_model
    from infer_align.targets import Target
    from infer_align.torch.contexts import bind

    lm = own_model(loaded)
    if lm is None:
        raise Stop(f"{loaded.path} has no def model(): an exact solution needs its language model")
    lm.module.requires_grad_(False)  # noqa: FBT003 (torch's own signature)
    prompts = data.check_prompts(loaded.option("PROMPTS"), loaded.path)
    if prompts is not None:
        lm.encode_prompts(prompts)
    program = loaded.make(lm)
    if not isinstance(program, Target) and callable(program):
        _check_arguments(program, loaded.path, has_prompts=prompts is not None)
    if prompts is None:
        return program, ()
    if len(prompts) > 1:
        notice(f"solved for the first of {len(prompts)} prompts")
    bind(program, prompts[:1], {})
    return program, (prompts[:1],)


def _check_arguments(program: Any, path: Path, *, has_prompts: bool) -> None:
    """Refuse a program that needs what this command does not give."""
    parameters = list(inspect.signature(program).parameters.values())
    needed = [p.name for p in parameters if p.default is p.empty
              and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]  # fmt: skip
    columns = [name for name in needed if name != parameters[0].name]
    if columns:
        raise Stop(
            f"the program of {path} reads columns of a prompt file ({', '.join(columns)}), which "
            "exact does not take: give these arguments defaults, or bind them in target(lm)"
        )
    if needed and not has_prompts:
        raise Stop(
            f"the program of {path} takes {needed[0]}, and the file has no PROMPTS: write "
            f"PROMPTS = [...] in it, of which the first is solved, or give {needed[0]} the default "
            "None"
        )


def _listed(text: str | None, flag: str) -> list[str]:
    parts = [part.strip() for part in (text or "").split(",")]
    if not all(parts):
        raise Stop(f"{flag} is a list of numbers with commas, got {text!r}")
    return parts


def _number_of_draws(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise Stop(f"--n is a list of numbers with commas, and {text!r} is none") from None


def _print(report: Report) -> None:
    if "answer" in report:
        _print_answer(report)
    if "tilt" in report:
        _print_tilts(report)
    if "bon" in report:
        _print_best_of_n(report)


def _print_answer(report: Report) -> None:
    a = report["answer"]
    say(f"solved by {a['engine']}: {a['reason']}\n")
    rows = (
        ("log Z", a["log_z"]), ("E_p[reward]", a["expected_reward"]),
        ("KL(p‖prior)", a["kl_to_prior"]), ("entropy of p", a["entropy"]), ("beta", a["beta"]),
    )  # fmt: skip
    lines = [(label, f"{value:z.6f}") for label, value in rows if value is not None]
    print_table(["", "nats, totals"], lines)
    if "draws" not in report:
        say(f"\nno frontier: {a['frontier'].removeprefix('none: ')}")
        return
    say("\nbest-of-n beside the tilt of the same KL, totals:\n")
    heads = [
        "n",
        "E[reward]",
        "tilt's",
        "KL to prior",
        "log n − 1 + 1/n",
        "KL to tilt",
        "TV",
        "win rate",
    ]
    keys = ("reward_bon", "reward_tilt", "kl", "kl_bound", "kl_bon_tilt", "tv", "win_rate")
    print_table(heads, [[f"{d['n']:g}", *(_number(d[k]) for k in keys)] for d in report["draws"]])


def _print_tilts(report: Report) -> None:
    say("\ntilts, per token:\n")
    keys = ("beta", "reward", "variance", "log_z")
    print_table(
        ["delta", "beta", "R(delta)", "variance", "log Z", "letter probabilities"],
        [
            [f"{t['delta']:g}", *(_number(t[k]) for k in keys),
             " ".join(f"{x:.4f}" for x in t["probs"][:8]) + (" …" if len(t["probs"]) > 8 else "")]
            for t in report["tilt"]
        ],
    )  # fmt: skip


def _print_best_of_n(report: Report) -> None:
    say("\nbest-of-n, n = exp(m·delta), rewards and KLs per token:\n")
    keys = ("reward_bon", "reward_tilt", "kl_bon_prior", "kl_bon_tilt", "tv", "win_rate")
    heads = ["m", "delta", "E[reward]", "tilt's", "KL to prior", "KL to tilt", "TV", "win rate", ""]
    rows = []
    for row in report["bon"]:
        quality = (
            row["engine"] if row["exact"] else f"{row['engine']}, rewards ± {row['error']:.1g}"
        )
        rows.append([row["m"], f"{row['delta']:g}", *(_number(row[k]) for k in keys), quality])
    print_table(heads, rows)


def _number(x: float) -> str:
    return f"{x:z.6f}" if math.isfinite(x) and (x == 0 or abs(x) >= 1e-4) else f"{x:.3g}"
