"""The network behind a `CausalLM`: a Hugging Face module, perhaps with adapters injected in it.

A low-rank fit shares one module between the prior and the policy. ``peft`` injects its layers
in place, so whoever runs the module must say with which adapter: `Network` is a pair
(module, adapter name or ``None``) that switches before each pass. With ``None`` the adapter
layers return the base layer's output, so the prior stays bitwise what it was.

Dropout is always off, in sampling and in scoring: a mask drawn anew in each would make them
two different distributions.
"""

import functools
import inspect
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from infer_align._threads import alone
from infer_align.torch import handling as handling_
from infer_align.torch import length_rules
from infer_align.torch.handling import Handling

if TYPE_CHECKING:
    from peft import PeftModel


CACHES = ("past_key_values", "cache_params")
"""Names under which a network takes and returns what it remembers of earlier tokens."""


ROUNDING = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 0.1, torch.bfloat16: 0.7}
"""Nats by which two ways of running a token may differ by rounding; √T times that for T tokens.

Ten times the largest gap met between rows in two orders, and between sampling and scoring, on the
tests' models and on SmolLM2. Some networks compute parts in float32 whatever their type.
"""


@dataclass
class SharedModel:
    """A Hugging Face causal LM and the adapters that were injected in it."""

    module: PreTrainedModel
    peft: "PeftModel | None" = None
    layers: list[Any] = field(default_factory=list)
    active: str | None = None
    handlings: dict[tuple, Handling] = field(default_factory=dict)
    """What `handling` found of this module."""

    @functools.cached_property
    def rules(self) -> length_rules.LengthRules:
        """At which lengths the network changes, as its configuration says."""
        return length_rules.read(self.module.config.get_text_config())

    def add_adapter(self, *, rank: int, alpha: int, target_modules: str | list[str]) -> str:
        """Inject a new LoRA adapter (dropout 0, zero effect at first); returns its name."""
        from peft import LoraConfig, PeftModelForCausalLM

        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=rank,
            lora_alpha=alpha,
            lora_dropout=0.0,
            target_modules=target_modules,
            # GPT-2's Conv1D stores its weight transposed.
            fan_in_fan_out=any(isinstance(m, Conv1D) for m in self.module.modules()),
        )
        name = self._fresh_name()
        if self.peft is None:
            with _quiet_peft():
                self.peft = PeftModelForCausalLM(self.module, config, adapter_name=name)
        else:
            self.peft.add_adapter(name, config)
        self._adapters_changed()
        return name

    def load_adapter(self, path: str) -> str:
        """Inject an adapter that ``peft`` or `CausalLM.save` wrote; returns its name."""
        from peft import PeftModel

        name = self._fresh_name()
        # peft draws initial values before it loads: keep them out of the caller's generator.
        with alone(), torch.random.fork_rng():
            if self.peft is None:
                with _quiet_peft():
                    self.peft = PeftModel.from_pretrained(
                        self.module, path, adapter_name=name, is_trainable=True
                    )
            else:
                self.peft.load_adapter(path, name, is_trainable=True)
        self._adapters_changed()
        return name

    def activate(self, adapter: str | None) -> None:
        """Run the next passes with this adapter, or with none."""
        self.module.eval()
        if self.peft is None or adapter == self.active:
            return
        for layer in self.layers:
            if adapter is not None:
                layer.set_adapter([adapter])
            layer.enable_adapters(adapter is not None)
        self.active = adapter
        self._unfreeze()

    def adapter_parameters(self, adapter: str) -> dict[str, nn.Parameter]:
        """Parameters of one adapter by name."""
        assert self.peft is not None, "adapters live in self.peft"
        return {k: p for k, p in self.peft.named_parameters() if adapter in k.split(".")}

    def _fresh_name(self) -> str:
        return "default" if self.peft is None else f"policy_{len(self.peft.peft_config)}"

    def _adapters_changed(self) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        self.layers = [m for m in self.module.modules() if isinstance(m, BaseTunerLayer)]
        self.active = "?"  # forces the next switch
        self._unfreeze()

    def _unfreeze(self) -> None:
        """Undo what peft does to idle adapters: it marks them as frozen.

        A backward pass skips a frozen leaf silently, so a graph recorded before a switch would
        lose its gradient; and an optimiser made before the first pass would miss the adapter.
        """
        assert self.peft is not None, "adapters live in self.peft"
        for name in self.peft.peft_config:
            for parameter in self.adapter_parameters(name).values():
                parameter.requires_grad = True


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """Silence a deprecation between ``peft`` 0.21 and Transformers 5.23; nothing else."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
        )
        yield


@dataclass
class Network:
    """A shared module run with one adapter (or none), and what sampling and scoring must know.

    Attributes
    ----------
    shared : SharedModel
        The module.
    adapter : str or None
        The adapter in force; ``None`` for the module as it was loaded.
    eos_token_ids : tuple of int
        Tokens that end an outcome.
    token_budget : int
        Largest number of tokens (rows times padded width) of one forward pass.
    counts : Counter
        ``sampled_rows``, ``scored_rows``, ``grad_rows`` (scored with a graph) and
        ``network_calls`` since the start: a benchmark reads the cost of a step from them.
    """

    shared: SharedModel
    adapter: str | None
    eos_token_ids: tuple[int, ...]
    token_budget: int
    counts: Counter = field(default_factory=Counter)

    def __post_init__(self):
        forward = inspect.signature(self.shared.module.forward).parameters
        self._keeps_logits = "logits_to_keep" in forward
        self._takes_mask = "attention_mask" in forward
        self.takes_positions = "position_ids" in forward
        self.needs_positions = (
            self.takes_positions and forward["position_ids"].default is inspect.Parameter.empty
        )
        anything = any(p.kind is p.VAR_KEYWORD for p in forward.values())
        self._takes_use_cache = "use_cache" in forward or anything
        self._cache_name = next((name for name in CACHES if name in forward), None)
        self._eos = torch.tensor(self.eos_token_ids, dtype=torch.long)

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return self.shared.module.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the log-probabilities: at least float32."""
        return at_least_float32(self.shared.module.dtype)

    @property
    def rounding(self) -> float:
        """Nats by which two ways of running a token may differ; see `ROUNDING`."""
        return ROUNDING.get(self.shared.module.dtype, ROUNDING[torch.bfloat16])

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the network gives a probability to."""
        return self.shared.module.config.get_text_config().vocab_size

    @property
    def context_length(self) -> int | None:
        """Largest number of positions, where the configuration states one."""
        config = self.shared.module.config.get_text_config()
        stated = getattr(config, "max_position_embeddings", None)
        return stated if stated is not None and stated > 0 else None  # XLNet says -1: no limit

    def side(self, prompt: int, new: int) -> Any:
        """On which side of the network's switches a row lies; see `LengthRules.side`."""
        return self.shared.rules.side(prompt, new, type(self.shared.module).__name__)

    def handling(self, side: Any, read: int) -> Handling:
        """How rows of a side that read up to ``read`` tokens are run; checked at first use."""
        return handling_.handling(self, side, read)

    def activate(self) -> None:
        """Switch the shared module to this network's adapter."""
        self.shared.activate(self.adapter)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Run passes with this adapter: no other thread switches the module meanwhile."""
        with alone() if self.shared.peft is not None else nullcontext():
            self.activate()
            yield

    def is_eos(self, tokens: Tensor) -> Tensor:
        """True where a token ends an outcome."""
        return torch.isin(tokens, self._eos.to(tokens.device))

    def __call__(
        self,
        input_ids: Tensor,
        mask: Tensor | None,
        positions: Tensor | None,
        keep: int,
        cache: Any = None,
        *,
        use_cache: bool = False,
        only: int | None = None,
    ) -> tuple[Tensor, Any]:
        """Logits of the last ``keep`` columns in at least float32, and the key-value cache.

        ``only`` leaves all but the first of these columns out.
        """
        self.counts["network_calls"] += 1
        given: dict[str, Any] = {}
        if self._takes_mask and mask is not None:
            given["attention_mask"] = mask
        if positions is not None:
            given["position_ids"] = positions
        if self._takes_use_cache:
            given["use_cache"] = use_cache
        if cache is not None:
            given[str(self._cache_name)] = cache
        # An index tensor, not a number: the slice that a number makes is not contiguous, and
        # the head's product (and its weight gradient) then runs row by row, 3 times slower.
        width = input_ids.shape[1]
        wanted = torch.arange(width - keep, width, device=input_ids.device)[:only]
        if self._keeps_logits and len(wanted) < width:
            given["logits_to_keep"] = wanted
        out: Any = self.shared.module(input_ids=input_ids, **given)
        logits = out.logits
        if logits.shape[1] != len(wanted):
            logits = logits[:, -keep:][:, :only]
        left = None if self._cache_name is None else out.get(self._cache_name)
        return logits.to(at_least_float32(logits.dtype)), left


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The type in which log-probabilities are computed: float64 stays, the rest is float32."""
    return torch.promote_types(dtype, torch.float32)
