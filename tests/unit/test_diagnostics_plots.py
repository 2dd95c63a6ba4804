"""The plots draw the numbers that they claim to, and survive every degenerate sample."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from infer_align import WeightedSample, diagnostics
from infer_align.diagnostics import Estimate, FrontierPoint, by_position
from infer_align.estimators import LogWeights


def axes():
    figure = Figure(figsize=(5, 3), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def drawn(axis) -> None:
    """Render it: layout and ticks raise here, if at all."""
    axis.figure.canvas.draw()


def tree(scale: float = 0.9, contexts: int = 3, *, rejected: bool = False, shift: float = 0.0):
    rng = np.random.default_rng(1)
    z = rng.normal(size=(600, contexts))
    log_policy = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
    log_target = -0.5 * (z / scale) ** 2 + shift
    if rejected:
        log_target = np.where(z < 0, -np.inf, log_target)
    features = {"z": z, "sign": np.sign(z), "whole": np.round(z)}
    return diagnostics.assess(
        LogWeights(log_policy, log_target), log_prior=log_policy, features=features,
        contexts=[f"prompt {c}" for c in range(contexts)],
    )  # fmt: skip


def test_weights_are_sorted_and_relative_to_their_mean() -> None:
    log_weights = np.log(np.array([1.0, 4.0, 3.0] * 10)) + 5.0
    axis = diagnostics.plot_weights(log_weights, axes())
    line = next(line for line in axis.get_lines() if line.get_gid() == "weights")
    y = np.asarray(line.get_ydata())
    assert y.mean() == pytest.approx(1.0)
    assert (np.diff(y) <= 0).all()
    assert y[0] == pytest.approx(4 / (8 / 3))
    assert not [line for line in axis.get_lines() if line.get_gid() == "tail"]  # ties: no tail
    drawn(axis)


def test_pareto_tail_has_the_slope_of_the_weights() -> None:
    """Exact Pareto weights of index ½: a straight line of slope −½ at the top."""
    u = (np.arange(20_000) + 0.5) / 20_000
    axis = diagnostics.plot_weights(-0.5 * np.log(u), axes())
    tail = next(line for line in axis.get_lines() if line.get_gid() == "tail")
    x, y = (np.asarray(v, dtype=float) for v in (tail.get_xdata(), tail.get_ydata()))
    assert len(x) == int(3 * math.sqrt(20_000))
    raw = next(line for line in axis.get_lines() if line.get_gid() == "weights").get_ydata()
    np.testing.assert_allclose(y[5:], np.asarray(raw)[5 : len(y)], rtol=0.05)
    slope = np.polyfit(np.log(x[5:]), np.log(y[5:]), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.05)


@pytest.mark.parametrize(
    "log_weights",
    [
        np.zeros(50),
        np.array([1.0]),
        np.array([0.0, -np.inf, -np.inf]),
        np.linspace(0, 2000, 60),
        np.stack([np.full(40, -np.inf), np.linspace(0, 1, 40)], axis=1),
    ],
    ids=["equal", "single", "one accepted", "huge spread", "empty context"],
)
def test_degenerate_weights_are_drawn(log_weights) -> None:
    axis = diagnostics.plot_weights(log_weights, axes(), label="some")
    diagnostics.plot_weights(np.zeros(30), axis, label="others")
    drawn(axis)
    for line in axis.get_lines():
        assert not np.isnan(np.asarray(line.get_ydata(), dtype=float)).any()


def test_no_weights_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="draw more"):
        diagnostics.plot_weights(np.full(10, -np.inf), axes())


def test_contexts_stand_at_their_ess_and_khat() -> None:
    assessed = tree()
    axis = diagnostics.plot_contexts(assessed, axes())
    found = assessed["diagnostics/contexts"].to_dataset()
    points = np.concatenate([np.asarray(line.get_xydata()) for line in axis.get_lines()[1:]])
    order, expected = np.argsort(points[:, 0]), np.argsort(found["ess_low"].values)
    np.testing.assert_allclose(points[order, 0], found["ess_low"].values[expected])
    np.testing.assert_allclose(points[order, 1], found["pareto_khat"].values[expected])
    drawn(axis)


def test_contexts_with_infinite_khat_are_at_the_edges() -> None:
    few = diagnostics.assess(LogWeights(np.zeros((20, 2)) - 1, np.log(np.ones((20, 2)))))
    axis = diagnostics.plot_contexts(few, axes())
    low, high = axis.get_ylim()
    for line in axis.get_lines()[1:]:
        for y in np.asarray(line.get_ydata(), dtype=float):
            assert low < y < high
    drawn(axis)


def test_log_z_is_drawn_against_its_reference() -> None:
    assessed = tree()
    exact = np.full(3, math.log(0.9 * math.sqrt(2 * math.pi)))
    axis = diagnostics.plot_log_z(assessed, axes(), exact=exact)
    value = assessed["diagnostics/contexts"]["log_z"].values[0]
    points = np.concatenate([np.asarray(c.lines[0].get_xydata()) for c in axis.containers])
    np.testing.assert_allclose(np.sort(points[:, 1]), np.sort(value - exact))
    shifted = tree(shift=0.5)
    other = diagnostics.plot_log_z(assessed, axes(), other=shifted)
    gaps = np.concatenate([np.asarray(c.lines[0].get_ydata()) for c in other.containers])
    np.testing.assert_allclose(gaps, -0.5, atol=1e-9)
    with pytest.raises(ValueError, match="one of them"):
        diagnostics.plot_log_z(assessed, axes())
    with pytest.raises(ValueError, match="same contexts"):
        diagnostics.plot_log_z(assessed, axes(), exact=np.zeros(2))
    drawn(axis)


def test_ranks_are_flat_where_policy_and_target_agree() -> None:
    """Of a continuous feature and of one with ties; and not flat where they differ."""
    heights = lambda t: [
        np.asarray(c.lines[0].get_ydata()) for c in diagnostics.plot_ranks(t, axes()).containers
    ]
    for y in heights(tree(scale=1.0)):
        np.testing.assert_allclose(y, 1.0, atol=1e-9)
        assert y.mean() == pytest.approx(1.0)
    apart = heights(tree(scale=0.4))[0]
    assert apart[0] < 0.5
    assert apart[5] > 1.2
    drawn(diagnostics.plot_ranks(tree(rejected=True), axes(), features=["sign"]))


def test_pairs_are_a_grid_of_the_features() -> None:
    figure = Figure(figsize=(5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    diagnostics.plot_pairs(tree(rejected=True), figure)
    assert sum(axis.get_visible() for axis in figure.axes) == 6
    target = [bar.get_height() for bar in figure.axes[4].containers[1]]
    assert sum(target) == pytest.approx(1.0)
    assert target[0] == 0.0  # z < 0 is rejected
    figure.canvas.draw()
    with pytest.raises(ValueError, match="no feature 'x'"):
        diagnostics.plot_pairs(tree(), figure, features=["x"])
    log_q = np.full(300, -1.0)
    with pytest.raises(ValueError, match="no features"):
        diagnostics.plot_ranks(diagnostics.assess(LogWeights(log_q, log_q)), axes())
    off = diagnostics.assess(LogWeights(log_q, log_q, log_q), features={"x": log_q})
    with pytest.raises(ValueError, match="without a proposal"):
        diagnostics.plot_ranks(off, axes())


def test_a_weighted_sample_is_drawn_as_the_target_alone() -> None:
    """A tree of `assess_sample` has no draws of a policy: no bars of one, and no ranks."""
    log_w = np.random.default_rng(3).normal(size=300)
    features = {"x": log_w, "sign": np.sign(log_w)}
    sample = WeightedSample(log_w, log_w, log_w, evidence=log_w)
    for log_policy in (None, log_w):
        tree = diagnostics.assess_sample(sample, features=features, log_policy=log_policy)
        figure = Figure(figsize=(5, 5), layout="constrained")
        FigureCanvasAgg(figure)
        diagnostics.plot_pairs(tree, figure)
        (bars,) = figure.axes[3].containers
        assert sum(bar.get_height() for bar in bars) == pytest.approx(1.0)
        assert len(figure.axes[2].collections) == 1
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ["target"]
        figure.canvas.draw()
        with pytest.raises(ValueError, match="with assess of the policy, without a proposal"):
            diagnostics.plot_ranks(tree, axes())


def test_frontier_has_its_curve_and_its_bars() -> None:
    one = FrontierPoint(
        "fit", Estimate(0.5, 0.1, 0.3, 0.8, reliable=True),
        Estimate(2.0, 0.1, 1.8, math.inf, reliable=False),
    )  # fmt: skip
    curve = SimpleNamespace(kl=np.array([1.0, 0.0]), reward=np.array([3.0, 1.0]))
    axis = diagnostics.plot_frontier([one], axes(), exact=curve)
    assert axis.get_lines()[0].get_xydata().tolist() == [[0.0, 1.0], [1.0, 3.0]]
    (bars,) = axis.containers
    assert bars.lines[0].get_xydata().tolist() == [[0.5, 2.0]]
    ends = bars.lines[2][0].get_segments()[0][:, 0]
    np.testing.assert_allclose(ends, [0.3, 0.8])
    assert "not claimed" in axis.get_legend().get_texts()[-1].get_text()
    drawn(axis)


def test_positions_are_per_token() -> None:
    rng = np.random.default_rng(2)
    lengths = rng.integers(1, 6, size=(200, 2))
    curve = by_position(rng.exponential(size=(200, 2, 5)), lengths)
    axis = diagnostics.plot_positions({"sampled": curve}, axes(), unit="nats")
    line = axis.get_lines()[0]
    np.testing.assert_allclose(line.get_ydata(), curve.per_token)
    assert list(line.get_xdata()) == [1, 2, 3, 4, 5]
    drawn(axis)
    with pytest.raises(ValueError, match="no curve"):
        diagnostics.plot_positions({}, axes())


def test_of_many_contexts_a_hundred_are_drawn() -> None:
    """The worst one of 250 in colour, and every third of the other 249: 83 lines, and 1's."""
    lw = np.random.default_rng(0).normal(size=(20, 250))
    axis = diagnostics.plot_weights(lw, axes())
    greys = [line for line in axis.get_lines() if line.get_linewidth() == 0.8]
    assert len([line for line in greys if len(np.asarray(line.get_xdata())) == 20]) == 83
