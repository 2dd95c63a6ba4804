"""Python in README, CONTRIBUTING and the pages of docs/ and models/ runs, each block alone.

A `text` block that follows a python block directly is its exact output. On the line before a block,
`<!-- in: MODULE -->` runs it among the names of a module (where an addition would be written), and
`<!-- notest: why -->` runs its imports only. Decisions (docs/adr) are records and are left out.
"""

import ast
import contextlib
import importlib
import io
import re
import textwrap
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from infer_align import Space, exact, testing
from infer_align.jax import programs

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(
    r"(?:^[ ]*<!-- (?P<how>in|notest): (?P<what>[^\n]+) -->\n)?"
    r"^(?P<indent>[ ]*)```python\n(?P<code>.*?)^(?P=indent)```\n"
    r"(?:\s*```text\n(?P<output>.*?)```)?",
    re.DOTALL | re.MULTILINE,
)
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("models/*.md")),
    *sorted(ROOT.glob("benchmarks/*.md")),
    *sorted(ROOT.glob("paper_repro/**/*.md")),
]


class Block(NamedTuple):
    page: str
    line: int
    code: str
    output: str | None
    module: str | None = None
    why_not: str | None = None

    def run(self) -> dict[str, object]:
        """Execute the code in fresh names; what it defined."""
        names: dict[str, object] = {"__name__": "page"}
        if self.module:
            names |= vars(importlib.import_module(self.module)) | {"__name__": "page"}
        tree = ast.parse("\n" * (self.line - 1) + self.code, self.page)
        if self.why_not:
            tree.body = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(tree, self.page, "exec"), names)
        if self.output is not None and not self.why_not:
            assert printed.getvalue().rstrip() == self.output.rstrip()
        return names


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [
        Block(
            str(page.relative_to(ROOT)),
            text[: m.start("code")].count("\n") + 1,
            textwrap.dedent(m["code"]),
            m["output"],
            m["what"] if m["how"] == "in" else None,
            m["what"] if m["how"] == "notest" else None,
        )
        for m in BLOCK.finditer(text)
    ]
    assert len(found) == text.count("```python"), f"{page}: a python block that can't be read"
    return found


BLOCKS = [b for page in PAGES if page.parent.name != "adr" for b in blocks_of(page)]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.page}:{block.line}")
def test_a_block_runs_alone(block: Block) -> None:
    block.run()


def test_the_readme_is_executed_and_starts_with_the_two_commands() -> None:
    assert sum(b.page == "README.md" and not b.why_not for b in BLOCKS) >= 4
    first_screen = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:60]
    assert any("make demo" in line for line in first_screen)
    assert any("make test" in line for line in first_screen)


def skeleton(name: str) -> object:
    """What a block of CONTRIBUTING defines under this name."""
    for block in BLOCKS:
        if block.page == "CONTRIBUTING.md" and re.search(rf"^(def )?{name}\b", block.code, re.M):
            return block.run()[name]
    raise AssertionError(f"CONTRIBUTING.md defines no {name}")


def logit_gradient(loss, log_policy, log_density, log_proposal):
    density, proposal = jnp.asarray(log_density), None
    if log_proposal is not None:
        proposal = jnp.asarray(log_proposal)
    return np.asarray(
        jax.grad(lambda x: loss(jax.nn.log_softmax(x), density, proposal))(jnp.asarray(log_policy))
    )


def test_the_skeleton_of_a_divergence_keeps_the_contract() -> None:
    le_cam = skeleton("le_cam")
    testing.check_divergence(le_cam)  # type: ignore[arg-type]
    p, q = np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.3, 0.1])
    want = 0.5 * np.sum((q - p) ** 2 / (p + q))
    assert float(le_cam(np.log(q), np.log(p))) == pytest.approx(want)  # type: ignore[operator]


def test_the_skeleton_of_an_estimator_is_unbiased() -> None:
    testing.check_estimator(skeleton("plain_reverse_kl")(), logit_gradient)  # type: ignore[operator]


def test_the_skeleton_of_a_site_estimator_is_exact() -> None:
    def objective(t):
        x = numpyro.sample("x", dist.Bernoulli(jnp.stack([t, t**2])).to_event(1))
        return (1 + x[0]) * (2 + 3 * x[1])

    loss = programs.expectation(objective, {"x": skeleton("flip")})
    # E = (1 + t)(2 + 3t²). Each element alone is exact, given the other's draw.
    grads = jax.vmap(lambda k: jax.grad(loss, argnums=1)(k, 0.3))(
        jax.random.split(jax.random.key(0), 4000)
    )
    want = (2 + 3 * 0.3**2) + (1 + 0.3) * 6 * 0.3
    assert abs(float(grads.mean()) - want) < 5 * float(grads.std()) / 4000**0.5
    values = set(np.round(np.asarray(grads), 9))
    assert len(values) == 4  # the two draws, and no other randomness


def test_the_skeleton_of_a_combinator_is_the_closed_form() -> None:
    import infer_align as ia

    letters = dist.CategoricalProbs(jnp.array([0.5, 0.3, 0.2]))
    reward = lambda y: jnp.array([0.0, 1.0, -jnp.inf])[y]
    target = skeleton("cap")(ia.tilt(letters, reward, 0.5), 0.7)  # type: ignore[operator]
    answer = Space(jnp.arange(3)).solve(target)
    weights = np.array([0.5, 0.3 * np.exp(0.7), 0.0])
    np.testing.assert_allclose(np.exp(answer.log_prob), weights / weights.sum())


def test_the_skeleton_of_a_policy_on_levels_is_the_enumeration() -> None:
    law = exact.reward_law([0.5, 0.3, 0.2], [0, 1, 2])
    got = np.exp(skeleton("worst_of_n")(law, 3))  # type: ignore[operator]
    prior, want = np.array([0.5, 0.3, 0.2]), np.zeros(3)
    for drawn in np.ndindex(3, 3, 3):
        want[min(drawn)] += np.prod(prior[list(drawn)])
    np.testing.assert_allclose(got, want)
    assert np.isfinite(np.exp(skeleton("worst_of_n")(law, 1e300))).all()  # type: ignore[operator]
