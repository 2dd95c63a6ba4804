"""Pyro programs as targets.

A Pyro program is a target as it stands: its latent ``sample`` sites are the prior, its ``factor``
sites and observed sites the potential. It is vectorised: given outcomes on axis 0, every site's
log-probability must have shape exactly ``(n, *contexts)``. Its arguments are the contexts.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from infer_align import _supports
from infer_align._numerics import as_real, own
from infer_align._threads import alone
from infer_align.targets import Constrained, Target, collecting

__all__ = ["context_names", "target"]

Program = Callable[..., Any]
Outcome = Tensor | dict[str, Tensor]
Moments = dict[str, tuple[Any, float]]
"""Of each moment: the feature's values, and the desired mean."""
NO_LATENT_SITE = (
    "program {!r} has no latent sample site, so it has no prior; draw the outcome with "
    'pyro.sample("y", distribution)'
)


def target(
    program: Program | Target,
    *,
    name: str | None = None,
    log_bound: Any = None,
) -> Target:
    r"""Target declared by a Pyro program: log P(y|x) is the sum of its sites' log-probs.

    Parameters
    ----------
    program : callable
        A Pyro program. With one latent site an outcome is that site's value; with several, a
        dict from site to value. A `Target` passes through.
    name : str, optional
        Default: the program's name.
    log_bound : float or array of shape (*contexts), optional
        The largest value of the sum of factors and observed sites, where it is known: the largest
        reward over beta, 0 of constraints and likelihoods of discrete data. See `Target`.

    Returns
    -------
    Target
        Its prior is the distribution of the latent sites given the program's arguments.

    Requirements
    ------------
    Every site has one log-probability an outcome, of shape ``(n, *contexts)``. On first use a
    batch is compared with two of its outcomes alone, so that a potential that mixes outcomes is
    refused.
    A value outside the support of its site, observed ones too, has log-density −inf.

    Raises
    ------
    ValueError
        When evaluated: for a site of another shape, a program without a latent site, or a
        potential that depends on the other outcomes of the batch.

    Examples
    --------
    >>> import pyro, torch, pyro.distributions as dist
    >>> from infer_align.torch import target
    >>> def program():
    ...     y = pyro.sample("y", dist.Categorical(torch.tensor([0.5, 0.5])))
    ...     pyro.factor("reward", 2.0 * y)
    >>> target(program).log_density(torch.tensor([0, 1]))
    tensor([-0.6931,  1.3069])
    """
    if isinstance(program, Target):
        return program if log_bound is None else replace(program, log_bound=log_bound)
    if not callable(program):
        raise TypeError(f"a target is a Pyro program or a Target, got {type(program).__name__}")
    label = name or getattr(program, "__name__", "program")
    view = _ProgramView(program, label)
    return Target(view.prior, Constrained(view, label), label, log_bound=log_bound)


def context_names(program: Program) -> list[str]:
    """Names of a program's arguments: the prompts first, then the data columns it reads.

    Parameters
    ----------
    program : callable
    """
    return list(inspect.signature(program).parameters)


@dataclass
class _ProgramView:
    """A program seen as a prior and a potential."""

    program: Program
    name: str
    held: dict[str, Tensor] = field(default_factory=dict)
    checked: bool = field(default=False)

    def prior(self, *contexts: Any) -> "ProgramPrior":
        return ProgramPrior(self.program, contexts, self.name, self.held)

    def holding(self, values: dict[str, Tensor]) -> "_ProgramView":
        """Of the program whose named sites have these values; see `ProgramPrior.holding`."""
        return _ProgramView(self.program, self.name, values)

    def __call__(self, y: Outcome, *contexts: Any) -> tuple[Tensor, Moments]:
        """Log-potential, and the values and means of the moments, in one run of the program."""
        potential, moments = self._terms(y, contexts)
        if not self.checked:
            self._compare_with_single_outcomes(y, contexts, potential, moments)
            self.checked = True
        return potential, moments

    def _terms(self, y: Outcome, contexts: Sequence[Any]) -> tuple[Tensor, Moments]:
        with alone(), _Sites(self.name, y, held=self.held) as sites, collecting() as moments:
            self.program(*contexts)
        sites.finish()
        for name, (value, mean) in moments.items():
            if sites.shared(value):
                moments[name] = value.expand(sites.shape), mean
            elif tuple(value.shape) != tuple(sites.shape):
                raise ValueError(
                    f"the feature of moment {name!r} in program {self.name!r} has shape "
                    f"{tuple(value.shape)}; needed is one number an outcome, {tuple(sites.shape)}: "
                    "reduce over trailing axes with .sum(-1) or .any(-1), never over outcomes"
                )
        return sum(sites.potential, torch.zeros(sites.shape, device=sites.device)), moments

    def _compare_with_single_outcomes(
        self, y: Outcome, contexts: Sequence[Any], potential: Tensor, moments: Moments
    ) -> None:
        for i in sorted({0, len(potential) - 1}):
            one = {k: v[i : i + 1] for k, v in y.items()} if isinstance(y, dict) else y[i : i + 1]
            alone, features = self._terms(one, contexts)
            self._same(i, "potential", potential, alone[0])
            for name, (value, _) in moments.items():
                self._same(i, f"moment {name!r}", value, features[name][0][0])

    def _same(self, i: int, what: str, batch: Tensor, alone: Tensor) -> None:
        same = torch.isclose(
            alone.double(), batch[i].double(), rtol=1e-4, atol=1e-4, equal_nan=True
        )
        if not bool(same.all()):
            raise ValueError(
                f"the {what} of program {self.name!r} gives outcome {i} "
                f"{batch[i].flatten()[:3].tolist()} in a batch of {len(batch)} and "
                f"{alone.flatten()[:3].tolist()} alone; it must treat outcomes separately: "
                "reduce over the last axis, never over axis 0"
            )


@dataclass(frozen=True)
class ProgramPrior:
    """Distribution of a program's latent sites, given its arguments."""

    program: Program
    contexts: Sequence[Any]
    name: str
    held: dict[str, Tensor] = field(default_factory=dict)

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the contexts: the batch shape of the first latent site. Draws nothing."""
        return torch.Size(replace(self, held={}).site().batch_shape)

    def site(self) -> Any:
        """The distribution of the first latent site, given the contexts. Draws nothing."""
        found = self.next_site()
        if found is None:
            raise ValueError(NO_LATENT_SITE.format(self.name))
        return found[1]

    def holding(self, values: dict[str, Tensor]) -> "ProgramPrior":
        """The law of the other latent sites beside these, whose log-probabilities count in it.

        Parameters
        ----------
        values : dict
            Of each site one value. The program gets it with an axis of length 1 for outcomes, and
            repeated for every context.

        Returns
        -------
        ProgramPrior
        """
        return replace(self, held=values)

    def fixed_sites(self) -> None:
        """None: whether a program branches on its sites is not known, and runs are cheap."""

    def next_site(self) -> tuple[str, Any] | None:
        """The first latent site that is not held and its distribution, given the contexts.

        The program runs up to there, and nothing is drawn. None: every latent site is held.
        """
        listener = _NextSite(self.name, self.held)
        try:
            with alone(), listener, collecting():
                self.program(*self.contexts)
        except _Enough:
            return listener.found
        return None

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Outcome:
        """Outcomes drawn by running the program: an array, or a dict of several sites.

        Parameters
        ----------
        sample_shape : tuple of int
            ``(n,)`` for n outcomes.
        """
        with alone(), _Sites(self.name, None, sample_shape) as sites, collecting():
            self.program(*self.contexts)
        sites.finish()
        return sites.values if len(sites.values) > 1 else next(iter(sites.values.values()))

    def log_prob(self, value: Outcome) -> Tensor:
        """Sum of the latent sites' log-probs, of shape (n, *contexts).

        Parameters
        ----------
        value : tensor or dict of tensors
            Outcomes on axis 0.
        """
        sites = _Sites(self.name, value, stop=not isinstance(value, dict), held=self.held)
        try:
            with alone(), sites, collecting():
                self.program(*self.contexts)
        except _Enough:
            pass
        sites.finish()
        return sum(sites.prior[1:], sites.prior[0])


class _Enough(BaseException):
    """A site has been read: the rest need not run, and no `except Exception` of it goes on."""


class _Held(Messenger):
    """Gives latent sites the values that are held for them."""

    def __init__(self, program: str, held: dict[str, Tensor]) -> None:
        super().__init__()
        self.program, self.held = program, held
        self.row: tuple[int, ...] | None = None
        """Shape of one outcome in every context, (1, *contexts), once a held site has been met."""

    def hold(self, msg: Any) -> Tensor:
        """The held value of a site, for one outcome and every context."""
        fn, value = msg["fn"], self.held[msg["name"]]
        if self.row is None:
            self.row = (1, *fn.batch_shape)
        self.check_batch(msg)
        return own(value.expand(*self.row, *fn.event_shape))

    def check_batch(self, msg: Any) -> None:
        """Refuse a latent site that has another batch shape than the first: of a plate, say."""
        batch = tuple(msg["fn"].batch_shape)
        if self.row is not None and batch not in (self.row, self.row[1:]):
            raise ValueError(
                f"latent site {msg['name']!r} of program {self.program!r} has batch shape {batch} "
                f"and the first latent site {self.row[1:]}; needed is one outcome a context: "
                ".expand([size]).to_event(1) instead of a plate, .expand(contexts) if it is the "
                "same for all"
            )


class _NextSite(_Held):
    """Stops a program at its first latent site that is not held, which is ``found``."""

    def __init__(self, program: str, held: dict[str, Tensor]) -> None:
        super().__init__(program, held)
        self.seen: set[str] = set()
        self.found: tuple[str, Any] | None = None

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return _check_whole(msg, self.program)
        name = msg["name"]
        if name in self.seen and (name in self.held or not msg["is_observed"]):
            raise ValueError(
                f"program {self.program!r} has two sites named {name!r}; give each its own name"
            )
        self.seen.add(name)
        if msg["is_observed"]:
            return None
        if name not in self.held:
            self.check_batch(msg)
            self.found = name, msg["fn"]
            raise _Enough
        msg["value"], msg["done"] = self.hold(msg), True
        return None


def _check_whole(msg: Any, program: str) -> None:
    """Refuse a plate that draws a subsample."""
    if msg["fn"].subsample_size not in (None, msg["fn"].size):
        raise ValueError(
            f"plate {msg['name']!r} of program {program!r} draws a subsample, which "
            "makes the density random; use the whole plate"
        )


class _Sites(_Held):
    """Runs a program at given outcomes (or draws them) and collects its sites' log-probs."""

    def __init__(
        self,
        program: str,
        y: Outcome | None,
        sample_shape: tuple[int, ...] = (),
        *,
        stop: bool = False,
        held: dict[str, Tensor] | None = None,
    ) -> None:
        super().__init__(program, held or {})
        self.y, self.sample_shape, self.stop = y, sample_shape, stop
        self.values: dict[str, Tensor] = {}
        self.terms: list[tuple[Any, Tensor]] = []
        self.prior: list[Tensor] = []
        self.potential: list[Tensor] = []
        self.shape = torch.Size()
        self.device = torch.device("cpu")

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            _check_whole(msg, self.program)
        elif msg["name"] in self.held and not msg["is_observed"]:
            msg["value"], msg["done"] = self.hold(msg), True
        elif not msg["is_observed"]:
            msg["value"], msg["done"] = self._value(msg["name"], msg["fn"]), True

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or (self.y is None and msg["is_observed"]):
            return
        value, observed = msg["value"], msg["is_observed"]
        held = msg["name"] in self.held and not observed
        if not observed:
            event = len(msg["fn"].event_shape)
            if not self.values and not held:
                self.shape, self.device = value.shape[: value.ndim - event], value.device
            if not held:
                # The program goes on with its own tensor, and may edit it in place.
                self.values[msg["name"]] = own(value) if self.y is None else value
            if self.y is None or (not self.stop and not isinstance(self.y, dict)):
                return  # only the potential is wanted: the prior may be a costly network
        log_prob = _supports.log_prob(msg["fn"], value)
        self.terms.append((msg, scale_and_mask(log_prob, msg["scale"], msg["mask"])))
        if self.stop and not observed and not held:
            raise _Enough

    def _value(self, site: str, fn: Any) -> Tensor:
        if self.y is None:
            missing = len(self.sample_shape) if not self.values else 0
            return fn.sample(self.sample_shape if missing else self._missing_shape(fn))
        if isinstance(self.y, dict):
            if site in self.values:
                raise ValueError(
                    f"program {self.program!r} has two sites named {site!r}; give each its own name"
                )
            if site not in self.y:
                raise ValueError(
                    f"program {self.program!r} has a latent site {site!r} and the outcome has "
                    f"sites {sorted(self.y)}; give every latent site a value"
                )
            return own(self.y[site])
        if self.values:
            raise ValueError(
                f"program {self.program!r} has several latent sites ({', '.join(self.values)}, "
                f"{site}), so an outcome is a dict from site to value; got one array"
            )
        return own(self.y)

    def _missing_shape(self, fn: Any) -> tuple[int, ...]:
        """A later site needs sample axes only if it does not depend on an earlier one."""
        return self.sample_shape if len(fn.batch_shape) < len(self.shape) else ()

    def finish(self) -> None:
        """Sort the terms, and refuse sites and outcomes that do not fit each other."""
        if not self.values:
            raise ValueError(NO_LATENT_SITE.format(self.program))
        unused = set(self.y) - set(self.values) if isinstance(self.y, dict) else set()
        if unused:
            raise ValueError(
                f"program {self.program!r} has no latent site {sorted(unused)}; its latent sites "
                f"are {sorted(self.values)}"
            )
        for msg, term in self.terms:
            as_real(term, f"site {msg['name']!r} of program {self.program!r}")
            term = term.expand(self.shape) if self.shared(term) else term
            if term.shape != self.shape:
                raise ValueError(
                    f"site {msg['name']!r} of program {self.program!r} has log-probability of "
                    f"shape {tuple(term.shape)}; needed is one number an outcome, "
                    f"{tuple(self.shape)}: sum over trailing axes with .sum(-1) or .to_event(1), "
                    "and never over outcomes"
                )
            (self.potential if msg["is_observed"] else self.prior).append(term)

    def shared(self, term: Tensor) -> bool:
        """Whether it is a number of the held sites alone, the same for every outcome."""
        return bool(self.held) and term.shape == (1, *self.shape[1:])
