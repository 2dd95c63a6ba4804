"""Reports: the bounds of inexact rows hold the truth, and rows agree with the laws behind them."""

import json
import math

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from infer_align.exact import _engines, log_rewards, reports, reward_law
from infer_align.exact._letters import merged_letters
from infer_align.exact._saddle import by_saddle_point
from infer_align.exact.asymptotics import rate
from infer_align.exact.tilts import frontier

P = [0.5, 0.3, 0.2]
MODELS = {
    "T1": (P, log_rewards(["0.2", "0.3", "0.5"])),
    "decimals": (P, [-1.6094379124341003, -1.2039728043259361, -0.6931471805599453]),
    "irrational gaps": ([0.4, 0.35, 0.25], [0.0, 0.41421356, 1.0]),
    "four": ([0.1, 0.4, 0.2, 0.3], [0.0, 0.31830988, 0.36787944, 0.91]),
    "close letters": ([0.45, 0.45, 0.1], [0.0, 0.001234567, 1.0]),
}
LENGTHS = {"T1": 60, "decimals": 30, "irrational gaps": 40, "four": 20, "close letters": 40}


def row_by_grid(monkeypatch, name, m, delta, levels, **options):
    """The exact row, and that of a law on a grid of so many levels."""
    p, r = MODELS[name]
    model = reports.model(p, r)
    exact = reports.best_of_n_row(model, reward_law(p, r, m), delta, **options)
    monkeypatch.setattr(_engines, "MAX_LATTICE", levels)
    law = _engines.by_grid(merged_letters(p, r), m, "a grid is asked for")
    assert law.engine == "reward grid"
    assert not law.exact
    assert np.isfinite(law.log_prob).all()  # every level is attained
    return exact, reports.best_of_n_row(model, law, delta, **options), law


@pytest.mark.parametrize("delta", ["0", "0.02", "0.2", "0.5", "1.2", "3"])
@pytest.mark.parametrize("levels", [700, 3000, 100_000])
@pytest.mark.parametrize("name", MODELS)
def test_bounds_of_a_row_on_a_grid_hold_the_truth(monkeypatch, name, levels, delta):
    m = LENGTHS[name]
    exact, row, law = row_by_grid(monkeypatch, name, m, delta, max(levels, 17 * m), whole_n=False)
    assert exact["exact"]
    assert row["error"] == pytest.approx(law.error / m)
    assert set(row["bounds"]) == {"reward_bon", "kl_bon_prior", "kl_bon_tilt", "tv", "win_rate"}
    for key, (low, high) in row["bounds"].items():
        slack = 1e-9
        assert low - slack <= exact[key] <= high + slack, key
    for key in ("beta", "reward_tilt", "kl_bound", "log_n"):
        assert row[key] == exact[key]


@pytest.mark.parametrize("delta", ["0.02", "0.2", "0.5"])
@pytest.mark.parametrize("name", MODELS)
def test_bounds_hold_what_the_row_reports(monkeypatch, name, delta):
    _, row, _ = row_by_grid(monkeypatch, name, LENGTHS[name], delta, 3000)
    for key, (low, high) in row["bounds"].items():
        assert low <= row[key] <= high, key


@pytest.mark.parametrize("name", ["T1", "four"])
def test_bounds_close_in_on_the_reward_as_the_grid_is_refined(monkeypatch, name):
    width = []
    for levels in (1000, 10_000, 100_000):
        _, row, _ = row_by_grid(monkeypatch, name, 20, "0.3", levels)
        low, high = row["bounds"]["reward_bon"]
        width.append(high - low)
    assert width[0] > 5 * width[1] > 25 * width[2] > 0


def test_no_sequence_moves_by_more_than_the_error_of_the_grid(monkeypatch):
    p, r = MODELS["four"]
    monkeypatch.setattr(_engines, "MAX_LATTICE", 300)
    law = _engines.by_grid(merged_letters(p, r), 4, "")
    y = np.indices((4,) * 4).reshape(4, -1).T
    true, mass = np.array(r)[y].sum(1), np.array(p)[y].prod(1)
    # Both laws as quantile functions: no outcome is farther than the error from its level.
    order = np.argsort(true)
    cuts = np.cumsum(mass[order])[:-1]
    at = np.searchsorted(np.cumsum(np.exp(law.log_prob)), cuts - 1e-12)
    assert np.abs(law.rewards[at] - true[order][:-1]).max() <= law.error + 1e-12
    monkeypatch.setattr(_engines, "MAX_LATTICE", 16 * 4)
    assert _engines.by_grid(merged_letters(p, r), 4, "") is None


def test_a_law_without_a_bound_is_refused():
    p, r = MODELS["T1"]
    law = by_saddle_point(merged_letters(p, r), 1000, "more levels than fit")
    with pytest.raises(ValueError, match="no error bound here: it would need more levels than fit"):
        reports.best_of_n_row(reports.model(p, r), law, "0.2")


def test_rows_of_curves_agree_with_the_functions_behind_them():
    model = reports.model(["1/2", "0.3", "0.2"], ["0", "1", "2"])
    assert model.probs.tolist() == P
    (tilt,) = reports.tilt_rows(model, [0.3])
    point = frontier(model.letter, 0.3)
    assert tilt["beta"] == point.beta
    assert tilt["kl"] == pytest.approx(0.3, abs=1e-12)
    weight = np.array(P) * np.exp(np.arange(3) / point.beta)
    np.testing.assert_allclose(tilt["probs"], weight / weight.sum(), rtol=1e-12)
    assert tilt["log_z"] == pytest.approx(math.log(weight.sum()))
    rows = reports.frontier_rows(model.letter, [0.3])
    assert [row["kl"] for row in rows] == sorted(row["kl"] for row in rows)
    assert rows[0]["reward"] == pytest.approx(0.7)
    assert rows[-1]["reward"] == 2.0
    (mine,) = [row for row in rows if row["kl"] == 0.3]
    assert mine["slope"] == mine["beta"] == point.beta
    assert mine["curvature"] == pytest.approx(-(point.beta**3) / point.variance)
    for row in reports.rate_rows(model, [0.3]):
        assert row["prior"] == rate(model.letter, row["reward"])
        if row["reward"] < point.reward:
            assert row["best_of_n"]["0.3"] == math.inf
    orders = [row["order"] for row in reports.renyi_rows(model, [0.3])]
    assert {0.0, 1.0, 2.0, math.inf} <= set(orders)
    last = reports.renyi_rows(model, [0.3])[-1]
    assert last["prior"] == pytest.approx(math.log(1 + math.exp(-1) + math.exp(-2)))


def test_budgets_that_look_alike_in_six_digits_keep_their_own_curves():
    rows = reports.renyi_rows(reports.model(P, [0, 1, 2]), [0.2000001, 0.2000002])
    assert len(rows[0]["tilt"]) == 2


@pytest.mark.parametrize(("probs", "rewards"), [([1], [3]), ([0.5, 0.5], [1, 1])])
def test_a_reward_of_a_single_value_is_reported(probs, rewards):
    report = reports.memoryless(probs, rewards, [1, 4], ["0", "0.1"])
    assert json.loads(json.dumps(report)) == report
    assert report["model"]["kl_max"] == 0.0
    for row in report["bon"]:
        assert row["reward_bon"] == rewards[0]
        assert row["kl_bon_prior"] == pytest.approx(0.0, abs=1e-12)
        assert row["kl_bon_tilt"] == pytest.approx(0.0, abs=1e-12)


def test_whole_numbers_of_draws_that_are_written_as_logarithms():
    model, law = reports.model(P, [0, 1, 2]), reward_law(P, [0, 1, 2], 3)
    row = reports.best_of_n_row(model, law, "0.6", whole_n=True)
    assert math.exp(row["log_n"]) == pytest.approx(math.floor(math.exp(1.8)))
    large = reports.best_of_n_row(model, law, "40", whole_n=True)
    assert large["log_n"] == 120.0
    assert large["kl_bon_tilt"] == math.inf


@pytest.mark.slow
def test_budgets_per_token_need_independent_tokens():
    def program():
        y = numpyro.sample("y", dist.Categorical(jnp.array(P)).expand([3]).to_event(1))
        numpyro.factor("reward", 1.0 * jnp.sum(y[..., 1:] == y[..., :-1], axis=-1))

    assert "frontier" in reports.declared(program)
    with pytest.raises(ValueError, match="KL budgets per token need independent tokens"):
        reports.declared(program, kls=["0.1"])


def test_best_of_one_is_the_prior_to_the_last_digit():
    def program():
        y = numpyro.sample("y", dist.Categorical(jnp.array([0.1] * 10)))
        numpyro.factor("reward", 0.3 * y)

    one, two = reports.declared(program, draws=[1, 2])["draws"]
    assert one["kl"] == 0.0
    assert one["kl_bon_tilt"] == pytest.approx(0.0, abs=1e-15)
    assert one["beta"] == math.inf
    assert two["kl"] > 0.1
