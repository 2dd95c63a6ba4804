"""`infer-align assess`: what a fitted run is good for."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from infer_align import _files
from infer_align.cli import options as o
from infer_align.cli.console import notice, say
from infer_align.cli.errors import Stop, reported
from infer_align.cli.runs import RunFolder, check_target, digest
from infer_align.cli.settings import Settings

if TYPE_CHECKING:
    from infer_align.cli.job import Job
    from infer_align.torch import CausalLM

Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run folder of fit or demo.", callback=o.expanded)
]
Prompts = Annotated[
    Path | None, o.path("Other prompts: .txt or .jsonl, as for fit. Default: the run's.")
]
Seed = Annotated[int, o.opt("Of the draws.", low=0, most=o.LAST_SEED)]
Device = Annotated[str | None, typer.Option(help="Default: the run's.")]


@reported
def assess(
    run: Run,
    *,
    prompts: Prompts = None,
    n: Annotated[int, o.opt("Fresh outcomes per prompt.", "--n", "-n", low=2)] = 1024,
    seed: Seed = 0,
    before: Annotated[
        bool, typer.Option("--before", help="Assess the prior, too, and compare.")
    ] = False,
    trust_target: o.TrustTarget = False,
    device: Device = None,
    threads: o.Threads = None,
) -> None:
    """Measure how close a fitted run is to its target, on held-out prompts.

    Prints log Z, the divergences in both directions, ESS, Pareto k-hat and feature means, with 95%
    intervals where they hold; writes assessment_NAME.nc (ArviZ) and report_NAME.html into the run
    folder, where NAME is the prompt file's.
    """
    from infer_align.cli import evaluation
    from infer_align.cli.pipeline import HELD_OUT_SEED, save_tree
    from infer_align.cli.report import write_report
    from infer_align.cli.tables import print_notes, print_rows, print_samples, print_verdict

    folder = RunFolder(run)
    job, policy, config = load_run(folder, prompts, device, threads, trust=trust_target)
    job.check_size("--n", n)
    name = "training_prompts" if prompts is None else prompts.stem
    if name == "before":
        raise Stop("assessment_before.nc is the prior's: rename the prompts file")
    start = seed + HELD_OUT_SEED
    prior = None
    if before:
        prior = evaluation.evaluate(job, job.lm, n=n, seed=start + 1, label="assessing the prior")
    tree = evaluation.evaluate(job, policy, n=n, seed=start, label="assessing the policy")
    save_tree(tree, folder, folder.assessment(name))
    verdict = None if prior is None else evaluation.judge(prior, tree)
    say()
    print_rows(evaluation.rows(prior, tree), before=before)
    print_notes(evaluation.notes(prior, tree))
    print_samples("samples", evaluation.samples(tree, job.lm, 5))
    if verdict is not None:
        print_verdict(verdict, exam=False)
    report = folder.path / f"report_{name}.html"
    write_report(
        report, title=f"Assessment on {name}", config=config, lm=job.lm,
        before=prior, after=tree, metrics={}, verdict=verdict, beta=job.beta,
    )  # fmt: skip
    folder.wrote(report)
    say(f"\nArviZ:   {folder.assessment(name)}\nreport:  {report}")


class LoadedRun(NamedTuple):
    """A run folder, read."""

    job: "Job"
    policy: "CausalLM"
    config: dict[str, Any]


def load_run(
    folder: RunFolder,
    prompts: Path | None,
    device: str | None,
    threads: int | None,
    *,
    trust: bool,
) -> LoadedRun:
    """A run's job on these prompts, and its policy: the fitted one, or the last checkpoint's.

    Parameters
    ----------
    folder : RunFolder
    prompts : pathlib.Path, optional
    device : str, optional
    threads : int, optional
    trust : bool
        Run the target file also if it is not the one that the run was made with.
    """
    config = folder.read_config(trust=trust)
    settings = Settings.from_config(config["settings"])
    check_target(config, Path(settings.target), trust=trust)
    if prompts is None and settings.prompts is not None:
        path = Path(settings.prompts)
        if path.is_file() and digest(path) != config["prompts_sha256"]:
            notice(f"{path} has changed since the run began; these are its new prompts")
    if device is not None:
        settings = replace(settings, device=device)

    from infer_align.cli.job import prepare, set_up

    set_up(threads)
    if not _found(folder):
        notice(f"the run in {folder.path} is not complete; its last checkpoint is taken")
    job = prepare(settings, prompts=prompts)
    return LoadedRun(job, _policy(folder, job), config)


def _found(folder: RunFolder) -> bool:
    """Whether there is a fitted policy, and a whole one; if not, there is a checkpoint."""
    from infer_align.torch.checkpoints import complete

    if folder.policy.is_dir():
        if damage := _files.faults(folder.policy):
            raise Stop(
                f"the fitted policy is damaged: {'; '.join(damage)}. The last checkpoint holds the "
                f"same: move {folder.policy} away and run infer-align fit --resume --run-dir "
                f"{folder.path}"
            )
        return True
    try:
        complete(folder.checkpoint)
    except FileNotFoundError as error:
        raise Stop(
            f"{folder.path} has no fitted policy and no checkpoint: run infer-align fit first"
        ) from error
    return False


def _policy(folder: RunFolder, job: "Job") -> "CausalLM":
    """The policy; read again where a live run put another in its place meanwhile."""
    from infer_align.torch import CausalLM
    from infer_align.torch.checkpoints import complete

    dtype = next(job.lm.module.parameters()).dtype
    for _ in range(5):
        whole = folder.policy.is_dir()
        path = folder.policy if whole else complete(folder.checkpoint)
        mark = _mark(path)
        try:
            policy = CausalLM.load(
                path if whole else path / "policy", prior=job.lm, dtype=dtype, device=job.lm.device
            )
        except Exception:
            if _mark(path) == mark:
                raise
        else:
            if _mark(path) == mark:
                return policy
    raise Stop(f"a run is writing to {folder.path} faster than it can be read: try again later")


def _mark(path: Path) -> bytes:
    try:
        return (path / _files.MANIFEST).read_bytes()
    except OSError:
        return b""
