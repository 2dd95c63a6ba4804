"""`report.html`: one self-contained page with the verdict, the table, the curves, the samples."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infer_align import _files
from infer_align.cli import assessment_figures, evaluation, figures
from infer_align.cli.escapes import printable
from infer_align.cli.metrics import Columns
from infer_align.cli.settings import Settings

if TYPE_CHECKING:
    import xarray

    from infer_align.cli.evaluation import ContextRow, Row, Sample, Verdict
    from infer_align.torch import CausalLM

MOST_PROMPTS = 50
"""Rows of the table of prompts."""
STYLE = """
:root { color-scheme: light dark; --ink: #1c2128; --soft: #5b6472; --line: #d8dde4;
  --page: #ffffff; --card: #f6f7f9; --good: #1a7f4b; --bad: #c0362c; --accent: #2f6fc6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #9aa4b2; --line: #343b45;
  --page: #14181d; --card: #1c2229; --good: #4cc38a; --bad: #ef7369; --accent: #74a9ec; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2.5rem 1.25rem 4rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.65rem; line-height: 1.25; margin: 0; }
h2 { font-size: 1.1rem; margin: 2.75rem 0 .75rem; }
.sub { color: var(--soft); margin: .35rem 0 1.25rem; overflow-wrap: anywhere; }
.verdict { background: var(--card); border-left: 4px solid var(--tone); border-radius: 6px;
  padding: .9rem 1.1rem; }
.verdict b { color: var(--tone); letter-spacing: .03em; }
.verdict ul { margin: .5rem 0 0; padding: 0; list-style: none; font-size: .93rem; }
.pass { --tone: var(--good); } .fail { --tone: var(--bad); } .plain { --tone: var(--accent); }
.yes::before { content: "✓ "; color: var(--good); }
.no::before { content: "✗ "; color: var(--bad); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th { text-align: left; font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--line); }
th, td { padding: .38rem .9rem .38rem 0; vertical-align: top; }
td { border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
td:first-child { white-space: nowrap; }
sub { line-height: 0; }
tr.exact td { color: var(--soft); font-size: .88em; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr));
  gap: 1.5rem 2rem; }
figure { margin: 0; } figcaption { font-size: .92rem; font-weight: 600; margin-bottom: .35rem; }
svg { width: 100%; height: auto; display: block; color: var(--ink); }
svg text { font-family: inherit !important; }
details { margin-top: 1.25rem; } summary { color: var(--soft); font-size: .92rem; cursor: pointer; }
td.prompt { white-space: normal; max-width: 22rem; overflow-wrap: anywhere; }
.notes { color: var(--soft); font-size: .9rem; padding-left: 1.1rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr));
  gap: 0 2.5rem; }
.columns h3 { font-size: .95rem; margin: 0 0 .4rem; color: var(--soft); }
.sample { border-bottom: 1px solid var(--line); padding: .5rem 0; font-size: .93rem; display: flex;
  gap: .8rem; } .sample i { font-style: normal; color: var(--soft); }
.sample code { color: var(--soft); font-size: .85em; padding-top: .15em; min-width: 3.2em; }
.sample span { overflow-wrap: anywhere; white-space: pre-wrap; }
.settings td { padding-top: .2rem; padding-bottom: .2rem; overflow-wrap: anywhere; }
.settings td:first-child { color: var(--soft); width: 14rem; }
"""


def write_report(
    path: Path,
    *,
    title: str,
    config: Mapping[str, Any],
    lm: "CausalLM",
    before: "xarray.DataTree | None",
    after: "xarray.DataTree",
    metrics: Columns,
    verdict: "Verdict | None",
    beta: float | None,
    exam: bool = False,
) -> None:
    """Write the page.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    title, config, lm, metrics, beta
        What was run.
    before, after : xarray.DataTree
        Assessments; without a before, the page shows one.
    verdict : Verdict, optional
        Shown at the top.
    exam : bool
        As PASS or FAIL.
    """
    reuse = Settings.from_config(config["settings"]).reuse
    # Estimates from reused batches are noisier.
    fresh = {name: x[(metrics["step"] - 1) % reuse == 0] for name, x in metrics.items()}
    trees = {"after": after} if before is None else {"before": before, "after": after}
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="sub">{escape(_summary(config, beta))}</p>',
        "" if verdict is None else _verdict(verdict, exam=exam),
        "<h2>How close to the target</h2>",
        _table(evaluation.rows(before, after), two=before is not None),
        _notes(evaluation.notes(before, after)),
        "<h2>Whether the weights can be trusted</h2>",
        _figures(assessment_figures.trust(trees)),
        _contexts(evaluation.context_rows(after)),
        "<h2>How far from the prior, and where</h2>",
        _figures(assessment_figures.distance(fresh, trees, beta)),
        *_optional("Features", assessment_figures.features(after)),
        *_optional("Curves of the fit, and its weights", figures.curves(fresh, trees)),
        "<h2>Samples</h2>",
        '<div class="columns">',
        *(_samples(n, evaluation.samples(t, lm, 8), len(trees)) for n, t in trees.items()),
        "</div>",
        "<h2>Settings</h2>",
        _settings(config),
    ]
    _files.write(path, _page(title, body))


def _page(title: str, body: Sequence[str]) -> str:
    """The page; what completions, prompts and names hold in control characters is escaped."""
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
    )
    return printable(head + "\n".join(body) + "\n</body></html>\n")


def _summary(config: Mapping[str, Any], beta: float | None) -> str:
    s = Settings.from_config(config["settings"])
    kind = "full fine-tuning" if s.lora is None else f"LoRA rank {s.lora}"
    target = Path(s.target).stem + ("" if s.name == "target" else f":{s.name}")
    temperature = "" if beta is None else f" (β = {beta:g})"
    return (
        f"Target {target}{temperature} · {config['estimator']} · {kind} · {s.steps} steps of "
        f"{s.n} outcomes · {config['created']}"
    )


def _verdict(verdict: "Verdict", *, exam: bool) -> str:
    word, rest = verdict.words(exam=exam)
    kind = "pass" if verdict.passed else "fail" if exam else "plain"
    reasons = "".join(
        f'<li class="{"yes" if good else "no"}">{escape(text)}</li>'
        for good, text in verdict.reasons
    )
    return f'<div class="verdict {kind}"><b>{word}</b>: {rest}<ul>{reasons}</ul></div>'


def _table(rows: "Sequence[Row]", *, two: bool) -> str:
    heads = ["", "before", "after", "after − before"] if two else ["", "value"]
    lines = []
    for row in rows:
        cells = [row.label.strip(), row.before, row.after, row.change]
        cells = cells if two else [cells[0], cells[2]]
        kind = ' class="exact"' if row.label.startswith(" ") else ""
        cells = [escape(c) for c in cells]
        cells[0] = cells[0].replace("E_π", "E<sub>π</sub>").replace("E_p", "E<sub>p</sub>")
        lines.append(f"<tr{kind}>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody>'
        '</table></div><p class="notes" style="padding:0">p is the target, π the policy; '
        "divergences in nats; brackets are 95% intervals, from fresh draws.</p>"
    )


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    return '<ul class="notes">' + "".join(f"<li>{escape(n)}</li>" for n in notes) + "</ul>"


def _optional(title: str, images: Mapping[str, str]) -> list[str]:
    return [f"<h2>{escape(title)}</h2>", _figures(images)] if images else []


def _figures(images: Mapping[str, str]) -> str:
    shown = (
        f"<figure><figcaption>{escape(name)}</figcaption>{image}</figure>"
        for name, image in images.items()
    )
    return f'<div class="figures">{"".join(shown)}</div>'


def _contexts(rows: "Sequence[ContextRow]") -> str:
    """A table of prompts, the least trusted first; folded where there are many."""
    if len(rows) < 2:
        return ""
    heads = ("prompt", "ESS", "Pareto k̂", "log Z", "KL(π‖p)", "KL(p‖π)")
    lines = []
    for row in rows[:MOST_PROMPTS]:
        tone = "no" if not row.reliable else "yes"
        cells = (row.prompt, row.ess, row.khat, row.log_z, row.reverse_kl, row.forward_kl)
        first, *rest = (escape(c) for c in cells)
        tail = "".join(f"<td>{c}</td>" for c in rest)
        lines.append(f'<tr><td class="{tone} prompt">{first}</td>{tail}</tr>')
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    left = len(rows) - MOST_PROMPTS
    more = f"<p class=sub>and {left} more, better ones</p>" if left > 0 else ""
    return (
        f"<details{' open' if len(rows) <= 12 else ''}><summary>The {len(rows)} prompts, the least "
        f'trusted first (✓: intervals are claimed)</summary><div class="wide"><table><thead><tr>'
        f"{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>{more}</details>"
    )


def _samples(when: str, samples: "Sequence[Sample]", count: int) -> str:
    head = f"<h3>{when}</h3>" if count > 1 else ""
    lines = []
    for s in samples:
        value = "" if s.reward is None else f"<code>{s.reward:+.2f}</code>"
        text = f"<span><i>{escape(s.prompt)}</i>{escape(s.completion)}</span>"
        lines.append(f'<div class="sample">{value}{text}</div>')
    return f"<div>{head}{''.join(lines)}</div>"


def _settings(config: Mapping[str, Any]) -> str:
    rows = {k: v for k, v in config["settings"].items() if v is not None}
    rows["estimator"] = config["estimator"]
    rows |= {f"version of {k}": v for k, v in config["versions"].items()}
    cells = "".join(
        f"<tr><td>{escape(str(k))}</td><td>{escape(str(v))}</td></tr>" for k, v in rows.items()
    )
    return f'<div class="wide"><table class="settings"><tbody>{cells}</tbody></table></div>'
