"""The plots of `infer-align exact`, as PNG files."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

INK, GRID = "#22262b", "#d9dde3"
COLOURS = ("#3b7dd8", "#d9822b", "#2f9e6e", "#9b59b6", "#c0392b", "#7f8c8d")
Report = Mapping[str, Any]


def draw(report: Report, folder: Path) -> list[Path]:
    """Draw all plots that a report allows into a folder; their files."""
    plots: list[tuple[str, Callable[[Any, Report], None]]] = []
    if "frontier" in report:
        plots.append(
            ("frontier", _frontier if "bon" in report and "draws" not in report else _draws)
        )
    if "bon" in report:
        if len(report["model"]["probs"]) == 3:
            plots.append(("simplex", _simplex))
        plots += [
            ("rate_function", _rates),
            ("kl_best_of_n_tilt", _kl_per_token),
            ("renyi_cross_entropy", _renyi),
        ]
    if plots:
        folder.mkdir(parents=True, exist_ok=True)
    return [_save(paint, report, folder / f"{name}.png") for name, paint in plots]


def _save(paint: Callable[[Any, Report], None], report: Report, path: Path) -> Path:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "font.size": 9, "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK,
        "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False,
        "axes.spines.right": False, "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6,
        "axes.axisbelow": True, "legend.frameon": False, "axes.formatter.useoffset": False,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(6.2, 4.0), layout="constrained")
        FigureCanvasAgg(figure)
        paint(figure.add_subplot(), report)
        figure.savefig(path, dpi=160)
    return path


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    return np.array([row[key] for row in rows], dtype=float)


def _frontier(axis: Any, report: Report) -> None:
    """The frontier per token, with best-of-n of each length on its way to it."""
    rows = report["frontier"]
    axis.plot(_column(rows, "kl"), _column(rows, "reward"), color=INK, label="tilts: the frontier")
    _small_kl(axis, rows)
    lengths = sorted({row["m"] for row in report["bon"]})
    for m, colour in zip(lengths, _shades(len(lengths)), strict=True):
        bon = [row for row in report["bon"] if row["m"] == m]
        axis.plot(
            _column(bon, "kl_bon_prior"), _column(bon, "reward_bon"), "o", color=colour, ms=5,
            label=f"best of exp(mδ), m = {m}",
        )  # fmt: skip
    axis.set(xlabel="KL to the prior, nats per token", ylabel="E[reward] per token")
    _legend(axis)


def _draws(axis: Any, report: Report) -> None:
    """The frontier of a target, in totals, with best-of-n points and the target itself."""
    rows = report["frontier"]
    axis.plot(_column(rows, "kl"), _column(rows, "reward"), color=INK, label="tilts: the frontier")
    _small_kl(axis, rows)
    draws = report["draws"]
    kl, reward = _column(draws, "kl"), _column(draws, "reward_bon")
    axis.plot(kl, reward, "o", color=COLOURS[1], ms=5, label="best of n")
    for row, x, y in zip(draws, kl, reward, strict=True):
        axis.annotate(
            f"{row['n']:g}", (x, y), textcoords="offset points", xytext=(5, -10), fontsize=7,
            color=COLOURS[1],
        )  # fmt: skip
    answer = report["answer"]
    axis.plot(
        answer["kl_to_prior"], answer["expected_reward"], "*", color=COLOURS[0], ms=12,
        label=f"the target, beta = {answer['beta']:g}",
    )  # fmt: skip
    axis.set(xlabel="KL to the prior, nats", ylabel="E[reward]")
    axis.legend(fontsize=8)


def _small_kl(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """The expansion near the prior, as far as it is in the picture."""
    kl, y = _column(rows, "kl"), _column(rows, "small_kl_expansion")
    inside = y <= _column(rows, "reward").max() * 1.0 + 1e-12
    axis.plot(
        np.where(inside, kl, math.nan), y, color=INK, ls=":", lw=1, label="small-KL expansion"
    )


def _simplex(axis: Any, report: Report) -> None:
    """Three letters: the curve of tilts from prior to best letter, and lines of equal reward."""
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    probs, rewards = (np.array(report["model"][key]) for key in ("probs", "rewards"))
    place = lambda p: np.asarray(p) @ corners
    axis.fill(*corners.T, facecolor="none", edgecolor=INK, lw=1)
    theta = np.append(0.0, np.geomspace(1e-3, 1e3, 400)) / max(float(np.ptp(rewards)), 1e-9)
    logits = np.log(np.maximum(probs, 1e-300)) + np.multiply.outer(theta, rewards)
    tilts = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    _level_lines(axis, corners, rewards)
    axis.plot(*place(tilts).T, color=COLOURS[0], lw=2, label="tilts p·exp(r/β)/Z")
    axis.plot(*place(probs), "o", color=INK, ms=7, label="prior")
    for i, row in enumerate(report["tilt"]):
        axis.plot(
            *place(row["probs"]),
            "D",
            color=COLOURS[1],
            ms=5,
            label="tilt of KL δ" if i == 0 else None,
        )
        label = f"δ = {row['delta']:g}"
        axis.annotate(
            label, place(row["probs"]), textcoords="offset points", xytext=(7, -2), fontsize=8
        )
    for j, (x, y) in enumerate(corners):
        label = f"letter {j + 1}\nr = {rewards[j]:.3g}"
        axis.annotate(
            label, (x, y), textcoords="offset points", xytext=((-34, 34, 0)[j], (-16, -16, 8)[j]),
            ha="center", fontsize=8,
        )  # fmt: skip
    axis.set(xlim=(-0.14, 1.14), ylim=(-0.14, 1.02), aspect="equal")
    axis.axis("off")
    axis.legend(fontsize=8, loc="upper right")


def _level_lines(axis: Any, corners: np.ndarray, rewards: np.ndarray) -> None:
    """Lines of equal expected reward: from the edge between extremes to the middle letter's."""
    low, middle, high = np.argsort(rewards, kind="stable")
    span = rewards[high] - rewards[low]
    for share in np.linspace(0, 1, 9)[1:-1]:
        level = rewards[low] + share * span
        ends = [corners[low] + share * (corners[high] - corners[low])] if span else []
        for a, b in ((low, middle), (middle, high)):
            gap = rewards[b] - rewards[a]
            if gap > 0 and rewards[a] <= level <= rewards[b]:
                ends.append(corners[a] + (level - rewards[a]) / gap * (corners[b] - corners[a]))
                break
        if len(ends) == 2:
            axis.plot(*np.array(ends).T, color=GRID, lw=0.8)


def _rates(axis: Any, report: Report) -> None:
    """Rate functions of prior, tilts and best-of-n; the latter is infinite below its mean."""
    rows = report["rate_function"]
    x = _column(rows, "reward")
    axis.plot(x, _column(rows, "prior"), color=INK, label="prior, I₀")
    for delta, colour in _coloured(rows[0]["tilt"]):
        tilt = np.array([row["tilt"][delta] for row in rows])
        bon = np.array([row["best_of_n"][delta] for row in rows])
        axis.plot(x, tilt, color=colour, label=f"tilt, δ = {delta}")
        finite = np.isfinite(bon)
        axis.plot(x[finite], bon[finite], color=colour, ls="--")
        if finite.any():
            axis.axvline(x[finite][0], color=colour, ls=":", lw=0.8)
    top = np.nanmax(np.where(np.isfinite(_column(rows, "prior")), _column(rows, "prior"), np.nan))
    axis.set(xlabel="reward per token", ylabel="rate, nats per token")
    if top > 0:
        axis.set_ylim(-0.02 * top, 1.05 * top)
    axis.plot([], [], color=INK, ls="--", label="best of exp(mδ)")
    _legend(axis)


def _kl_per_token(axis: Any, report: Report) -> None:
    """KL(best-of-n‖tilt) against length: per token it vanishes, in total it does not."""
    groups = _by_delta(report)
    for delta, colour in _coloured(groups):
        rows = groups[delta]
        m, kl = _column(rows, "m"), _column(rows, "kl_bon_tilt")
        keep = np.isfinite(kl) & (kl > 0)
        if keep.any():
            axis.plot(m[keep], kl[keep], "o-", color=colour, label=f"δ = {delta:g}, per token")
            axis.plot(m[keep], (m * kl)[keep], "s:", color=colour, lw=1, ms=3)
    axis.set(xscale="log", yscale="log", xlabel="tokens m", ylabel="KL(best-of-n‖tilt), nats")
    if axis.lines:
        axis.plot([], [], "s:", color=INK, lw=1, ms=3, label="in total")
        _legend(axis)


def _by_delta(report: Report) -> dict[float, list[Mapping[str, Any]]]:
    out: dict[float, list[Mapping[str, Any]]] = {}
    for row in sorted(report["bon"], key=lambda row: row["m"]):
        out.setdefault(row["delta"], []).append(row)
    return out


def _renyi(axis: Any, report: Report) -> None:
    """Rényi cross entropies against the order, infinity at the right edge."""
    rows = report["renyi_cross_entropy"]
    order = _column(rows, "order")
    shown = np.where(np.isfinite(order), order, 1.35 * order[np.isfinite(order)].max())
    axis.plot(shown, _column(rows, "prior"), "o-", ms=3, color=INK, label="prior")
    for delta, colour in _coloured(rows[0]["tilt"]):
        values = np.array([row["tilt"][delta] for row in rows])
        axis.plot(shown, values, "o-", ms=3, color=colour, label=f"tilt, δ = {delta}")
    ticks = [x for x in (0, 1, 2, 3, 5, 10) if x <= order[np.isfinite(order)].max()]
    axis.set_xticks([*ticks, float(shown[-1])], [*map(str, ticks), "∞"])
    axis.set(xlabel="order α", ylabel="H_α(·‖q), q = softmax(r), nats")
    _legend(axis)


def _legend(axis: Any) -> None:
    """Inside the axes, or beside them where many curves leave no room."""
    if len(axis.get_legend_handles_labels()[0]) <= 6:
        axis.legend(fontsize=8)
    else:
        axis.figure.legend(fontsize=8, loc="outside right upper")


def _coloured(keys: Iterable[Any]) -> list[tuple[Any, Any]]:
    """Each with a colour of its own."""
    from matplotlib import colormaps

    known = list(keys)
    if len(known) <= len(COLOURS):
        return list(zip(known, COLOURS, strict=False))
    shades = colormaps["viridis"](np.linspace(0, 0.95, len(known)))
    return list(zip(known, shades, strict=True))


def _shades(count: int) -> list[Any]:
    """From light to dark."""
    from matplotlib import colormaps

    return [colormaps["YlOrRd"](x) for x in np.linspace(0.35, 0.95, count)]
