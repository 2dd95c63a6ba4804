"""Potentials of NaN and +inf are refused by exact solutions; -inf is an ordinary value."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from typer.testing import CliRunner

from infer_align import Space, exact
from infer_align.cli import app
from infer_align.jax import target

PROBS = (0.5, 0.3, 0.2)


def program(length, value):
    """Tokens whose second letter has this log-potential, once for each time it occurs."""

    def run():
        tokens = dist.Categorical(jnp.array(PROBS)).expand([length]).to_event(1)
        y = numpyro.sample("y", tokens)
        numpyro.factor("r", jnp.sum(jnp.array([0.0, value, 0.0])[y]))

    return run


@pytest.mark.parametrize("length", [3, 40], ids=["listed", "types"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_exact_refuses_potentials_that_are_nan_or_infinite(length, value):
    with pytest.raises(ValueError, match=r"target 'run' is NaN or \+inf for \d+ of \d+ entries"):
        exact.solve(target(program(length, value)))


@pytest.mark.parametrize("length", [3, 40], ids=["listed", "types"])
def test_a_rejected_letter_is_an_ordinary_value(length):
    log_z = exact.solve(target(program(length, -math.inf))).log_z
    np.testing.assert_allclose(log_z, length * math.log(0.7), rtol=1e-12)


@pytest.mark.parametrize("length", [3, 40], ids=["listed", "types"])
def test_exact_says_that_nothing_is_accepted(length):
    nothing = lambda: numpyro.factor("none", -jnp.inf)
    run = lambda: (program(length, 0.0)(), nothing())
    with pytest.raises(ValueError, match="accepts no"):
        exact.solve(target(run))


def test_a_space_refuses_them_in_densities_that_are_given():
    space = Space(np.arange(3))
    with pytest.raises(ValueError, match=r"NaN or \+inf for 1 of 3"):
        space.log_z(np.array([0.0, np.nan, 1.0]))
    # Inside jit the numbers are not known, and nothing is said.
    log_z = jax.jit(space.log_z)(jnp.log(jnp.array([0.5, 0.25, 0.25])))
    np.testing.assert_allclose(log_z, 0.0, atol=1e-12)


FILE = """
import jax.numpy as jnp, numpyro, numpyro.distributions as dist


def target():
    y = numpyro.sample("y", dist.Categorical(jnp.array([0.5, 0.3, 0.2])))
    numpyro.factor("r", jnp.array([0.0, {value}, 1.0])[y])
"""


@pytest.mark.parametrize(
    ("value", "code", "said"),
    [
        ("float('nan')", 2, "NaN or +inf for 1 of 3 entries"),
        ("-float('inf')", 0, "0.042730"),  # log(.5 + .2e)
        ("0.0", 0, "0.295395"),  # log(.8 + .2e)
    ],
)
def test_infer_align_exact_takes_a_numpyro_program_itself(value, code, said, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FILE.format(value=value))
    done = CliRunner().invoke(app, ["exact", str(file), "--out", str(tmp_path / "out")])
    text = " ".join((done.output + getattr(done, "stderr", "")).split())
    assert done.exit_code == code, text
    assert said in text
