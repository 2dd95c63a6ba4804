"""The run that `fit` and `demo` share: assess the prior, fit, assess the policy, report."""

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infer_align import _files
from infer_align.cli import evaluation, metrics
from infer_align.cli.console import live_text, meter, notice, say, warnings_as_notices
from infer_align.cli.errors import DEBUG, Stop, explain
from infer_align.cli.job import Job
from infer_align.cli.locks import Lock
from infer_align.cli.report import write_report
from infer_align.cli.runs import RunFolder
from infer_align.cli.settings import FINAL_RATE
from infer_align.cli.tables import print_notes, print_rows, print_samples, print_verdict

if TYPE_CHECKING:
    import xarray

    from infer_align.cli.fitting import How
    from infer_align.torch import CausalLM, Step

BEFORE_SEED, AFTER_SEED, HELD_OUT_SEED = 1_000_000, 2_000_000, 3_000_000
"""Added to the run's seed: no assessment shares draws with the fit or with another."""
SOFTEN = "soften the constraint, or give a model and prompts that meet it more often"


@dataclass
class StopRequest:
    """Set by the first interrupt: the step is finished, a checkpoint written."""

    asked: bool = field(default=False)


def run(
    job: Job, folder: RunFolder, lock: Lock, checkpoint: Path | None, how: "How"
) -> evaluation.Verdict | None:
    """Everything after loading; the verdict, or None where nothing was assessed.

    Parameters
    ----------
    job : Job
    folder : RunFolder
        With its config written.
    lock : Lock
        Of the folder.
    checkpoint : pathlib.Path, optional
        A whole one to go on from.
    how : How
    """
    try:
        verdict = _run(job, folder, lock, checkpoint, how)
        lock.check()
        return verdict
    except KeyboardInterrupt:
        raise Stop(f"interrupted\n{_how_to_go_on(folder)}", code=130) from None
    except Stop:
        raise
    except Exception as error:
        lock.check()  # what failed may be what was written to a folder that is gone
        if DEBUG.get():
            raise
        message = f"the run stopped: {explain(error)}\n{_how_to_go_on(folder)}"
        raise Stop(message, code=1) from error


def _run(
    job: Job, folder: RunFolder, lock: Lock, checkpoint: Path | None, how: "How"
) -> evaluation.Verdict | None:
    s = job.settings
    few = job.first(s.assess_prompts)
    if s.n_assess and few is not job:
        notice(f"assessing on the first {s.assess_prompts} of {len(job.labels)} prompts")
    before = _before(few, folder) if s.n_assess else None
    if before is not None and not evaluation.accepted(before):
        raise Stop(
            f"the target accepted none of the prior's {s.n_assess} draws per prompt, so there is "
            f"nothing to learn from: {SOFTEN} (--n-assess 0 goes on all the same)",
            code=1,
        )
    policy = train(job, folder, lock, checkpoint, checkpoint_every=how.checkpoint_every)
    if before is None:
        save_policy(policy, folder)
        say(f"fitted policy: {folder.policy} (not assessed: --n-assess 0)")
        return None
    after = evaluation.evaluate(
        few, policy, n=s.n_assess, seed=s.seed + AFTER_SEED, label="assessing the policy"
    )
    lock.check()
    save_tree(after, folder, folder.assessment())
    save_policy(policy, folder)
    title = how.title or f"Fit of {Path(s.target).stem}"
    return conclude(few, folder, before, after, title=title, exam=how.exam)


def conclude(
    job: Job,
    folder: RunFolder,
    before: "xarray.DataTree",
    after: "xarray.DataTree",
    *,
    title: str,
    exam: bool,
) -> evaluation.Verdict:
    """Print the table, the samples and the verdict, and write the report."""
    verdict = evaluation.judge(before, after)
    say()
    print_rows(evaluation.rows(before, after), before=True)
    print_notes(evaluation.notes(before, after))
    print_samples("before", evaluation.samples(before, job.lm, 5))
    print_samples("after", evaluation.samples(after, job.lm, 5))
    print_verdict(verdict, exam=exam)
    write_report(
        folder.report, title=title, config=folder.read_config(), lm=job.lm, before=before,
        after=after, metrics=metrics.read(folder), verdict=verdict, beta=job.beta, exam=exam,
    )  # fmt: skip
    folder.wrote(folder.report)
    say(f"\nreport:  {folder.report}\npolicy:  {folder.policy}")
    return verdict


def _before(job: Job, folder: RunFolder) -> "xarray.DataTree":
    """The prior's assessment: of the run that is resumed, or a fresh one, which is the same."""
    import xarray

    path = folder.assessment("before")
    if folder.is_whole(path):
        with xarray.open_datatree(path, engine="h5netcdf") as tree:
            return tree.load()
    if path.is_file():
        notice(f"{path} is not as the run wrote it: the prior is assessed again")
    tree = evaluation.evaluate(
        job, job.lm, n=job.settings.n_assess, seed=job.settings.seed + BEFORE_SEED,
        label="assessing the prior",
    )  # fmt: skip
    save_tree(tree, folder, path)
    return tree


def save_tree(tree: "xarray.DataTree", folder: RunFolder, path: Path) -> None:
    """Write a tree in one piece, as one of the run's files."""
    from infer_align import diagnostics

    with _files.replacing(path) as fresh:
        diagnostics.save(tree, fresh)
    folder.wrote(path)


def save_policy(policy: "CausalLM", folder: RunFolder) -> None:
    """Write the fitted policy, sealed, in one piece."""
    place = folder.policy.resolve()
    fresh = _files.partial(place)
    _files.remove(place)
    policy.save(fresh)
    _files.seal(fresh)
    fresh.rename(place)
    _files.sync(place.parent)


def train(
    job: Job, folder: RunFolder, lock: Lock, checkpoint: Path | None, *, checkpoint_every: int
) -> "CausalLM":
    """Fit, with metrics and checkpoints; the fitted policy."""
    from infer_align.torch import CausalLM, save_checkpoint
    from infer_align.torch.checkpoints import read_state

    s = job.settings
    saved = None
    if checkpoint is not None:
        saved = read_state(checkpoint)
        policy = CausalLM.load(
            checkpoint / "policy", prior=job.lm,
            dtype=next(job.lm.module.parameters()).dtype, device=job.lm.device,
        )  # fmt: skip
    else:
        policy = job.lm.trainable(lora=s.lora, seed=s.seed)
    first = 0 if saved is None else int(saved["index"])
    accepted, useful = 0.0, 0
    with (
        warnings_as_notices(),
        metrics.appending(folder, keep=first) as file,
        meter("step", s.steps, done=first) as bar,
        interruptible() as request,
    ):
        live = ""
        for step in _steps(job, policy, saved):
            done = step.index + 1
            lock.check()
            file.write({"step": float(done), **step.metrics})
            if done % checkpoint_every == 0 or done in (1, s.steps) or request.asked:
                file.mark()
                save_checkpoint(folder.checkpoint, policy, step.state)
            if step.index % s.reuse == 0:  # reused batches give noisier estimates
                live = live_text(step.metrics)
            bar.advance(done, live)  # after what must not be lost if nobody reads it any more
            accepted += step.metrics["acceptance"]
            useful += not step.metrics["skipped"]
            if request.asked and done < s.steps:
                raise KeyboardInterrupt
    if first < s.steps and not useful:
        _check_useful(folder, accepted, s.steps - first)
    return policy


def _steps(job: Job, policy: "CausalLM", saved: Mapping[str, Any] | None) -> "Iterator[Step]":
    """The library's fit, with the settings of the run."""
    import torch

    from infer_align.torch import fit

    s = job.settings
    optimizer = torch.optim.AdamW(list(policy.parameters()), lr=s.learning_rate, weight_decay=0.0)
    scheduler = None
    if s.schedule == "linear":
        scheduler = torch.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=1.0, end_factor=FINAL_RATE, total_iters=max(1, s.steps - 1)
        )
    return fit(
        policy, job.program, job.estimator, prompts=job.prompts, columns=job.columns, n=s.n,
        steps=s.steps, prompts_per_step=s.prompts_per_step, optimizer=optimizer,
        scheduler=scheduler, max_grad_norm=s.max_grad_norm, token_budget=s.token_budget,
        reuse=s.reuse, seed=s.seed, resume=saved,
    )  # fmt: skip


def _check_useful(folder: RunFolder, accepted: float, steps: int) -> None:
    """A run of which no step moved the policy did not succeed."""
    if accepted == 0:
        raise Stop(f"the target accepted no draw in {steps} steps: {SOFTEN}", code=1)
    if bool((metrics.read(folder)["skipped"] == 1).all()):
        raise Stop(
            f"all {steps} steps were skipped, so the policy is still the prior: in no batch did "
            "the outcomes differ in their weights. If the reward is rare, raise --n, or "
            f"{SOFTEN}; if it is constant, there is nothing to learn from it",
            code=1,
        )


def _how_to_go_on(folder: RunFolder) -> str:
    from infer_align.torch.checkpoints import complete

    try:
        complete(folder.checkpoint)
    except FileNotFoundError:
        return (
            f"no checkpoint was written yet; start again with --overwrite (or another --run-dir); "
            f"the run folder is {folder.path}"
        )
    except ValueError as error:
        return str(error)
    return (
        f"the last checkpoint is kept; go on with: infer-align fit --resume --run-dir {folder.path}"
    )


@contextmanager
def interruptible() -> Iterator[StopRequest]:
    """The first Ctrl-C (or SIGTERM) ends the run after this step, the second at once."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(signum: int, frame: Any) -> None:
        if request.asked:
            raise KeyboardInterrupt
        request.asked = True
        notice("finishing this step and writing a checkpoint; once more to stop at once")

    old = {sig: signal.signal(sig, handle) for sig in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for sig, handler in old.items():
            signal.signal(sig, handler)
