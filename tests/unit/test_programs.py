"""What a program is for is seen at its first message, and nothing else happens."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pyro
import pyro.distributions as pyro_dist
import pytest
import torch

from infer_align import exact
from infer_align.programs import as_target, library_of
from infer_align.targets import Target


def numpyro_coin(p=0.3):
    y = numpyro.sample("y", numpyro_dist.Bernoulli(p))
    numpyro.factor("reward", 1.0 * y)


def pyro_coin(p=0.3):
    y = pyro.sample("y", pyro_dist.Bernoulli(torch.as_tensor(p)))
    pyro.factor("reward", 1.0 * y)


def numpyro_plate(p):
    with numpyro.plate("contexts", len(p)):
        numpyro_coin(p)


def numpyro_factor():
    numpyro.factor("first", 0.0)
    numpyro_coin()


def pyro_param():
    pyro_coin(pyro.param("p", torch.tensor(0.3)))


def swallowing():
    try:
        pyro_coin()
    except Exception:
        return


class Called:
    """A program that is an object."""

    def __call__(self, p=0.3):
        pyro_coin(p)

    def method(self, p):
        numpyro_coin(p)


@pytest.mark.parametrize(
    ("program", "contexts", "library"),
    [
        (numpyro_coin, (), "numpyro"),
        (pyro_coin, (), "pyro"),
        (numpyro_plate, (jnp.array([0.3, 0.4]),), "numpyro"),
        (numpyro_factor, (), "numpyro"),
        (pyro_param, (), "pyro"),
        (swallowing, (), "pyro"),
        (Called(), (), "pyro"),
        (Called().method, (0.2,), "numpyro"),
        (functools.partial(numpyro_coin, 0.2), (), "numpyro"),
        (numpyro.handlers.seed(numpyro_coin, jax.random.key(0)), (), "numpyro"),
        (pyro.condition(pyro_coin, {"y": torch.tensor(1.0)}), (), "pyro"),
    ],
)  # fmt: skip
def test_the_first_message_says_whose_a_program_is(program, contexts, library):
    assert library_of(program, *contexts) == library


def test_nothing_is_drawn_no_generator_moves_and_no_reward_is_called():
    pyro.clear_param_store()
    called = []

    def program():
        y = pyro.sample("y", pyro_dist.Bernoulli(pyro.param("p", torch.tensor(0.3))))
        pyro.factor("reward", called.append(y) or 0.0)

    before = torch.get_rng_state()
    np_before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert library_of(program) == "pyro"
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(np_before, np.random.get_state()[1])  # noqa: NPY002
    assert called == []
    assert list(pyro.get_param_store()) == []
    # No handler stays behind.
    assert not pyro.poutine.runtime._PYRO_STACK
    assert not numpyro.primitives._PYRO_STACK


def test_a_program_is_solved_as_its_librarys_target_is():
    for program in (numpyro_coin, pyro_coin, swallowing):
        want = np.log(0.7 + 0.3 * np.e)
        assert float(exact.solve(program).log_z) == pytest.approx(want, rel=1e-6)
    target = Target(pyro_dist.Bernoulli(torch.tensor(0.3)), lambda y: y, "declared")
    assert as_target(target) is target


def test_what_is_no_program_of_either_is_refused_with_a_sentence():
    with pytest.raises(TypeError, match="needed is a Target or a program, got int"):
        as_target(3)
    with pytest.raises(ValueError, match="'<lambda>' sent no message to pyro or numpyro"):
        as_target(lambda: 1)
    with pytest.raises(TypeError, match=r"'numpyro_plate' cannot be called with the 0.*'p'"):
        as_target(numpyro_plate)
    with pytest.raises(TypeError, match="cannot be called with the 3 contexts given"):
        as_target(numpyro_coin, 1, 2, 3)
    with pytest.raises(ZeroDivisionError):  # the program's own errors stay as they are
        as_target(lambda: 1 / 0)


def test_a_library_that_the_program_does_not_use_is_not_imported():
    code = """
import sys
import numpyro, numpyro.distributions as dist
from infer_align import exact
def program():
    y = numpyro.sample("y", dist.Bernoulli(0.3))
    numpyro.factor("reward", 1.0 * y)
exact.solve(program)
assert "pyro" not in sys.modules and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_programs_in_other_threads_do_not_hear_it():
    """NumPyro's handlers are one list for all threads."""
    from concurrent.futures import ThreadPoolExecutor

    def many(_):
        return [library_of(p) for p in (numpyro_coin, pyro_coin) * 200]

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(many, range(4)):
            assert found == ["numpyro", "pyro"] * 200
