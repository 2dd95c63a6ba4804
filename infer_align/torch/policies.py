r"""Hugging Face causal language models as distributions over continuations.

`CausalLM` is a conditional policy: called with prompts it gives a Pyro distribution, so
``pyro.sample("y", lm(prompts))`` declares a language model's output in a program. The prior
is a frozen `CausalLM`; ``lm.trainable()`` gives the policy to fit, either a copy (full
fine-tuning) or the same network with a low-rank adapter, which the prior runs without.

Outcomes are token ids of shape ``(n, *contexts, T)`` that end at their first EOS; see
`infer_align.torch.continuations` for the law of their probabilities.
"""

import copy
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from infer_align import _files
from infer_align._arguments import count, positive
from infer_align._threads import alone
from infer_align.torch import prompts as prompts_
from infer_align.torch import scoring, storage
from infer_align.torch.continuations import Continuations
from infer_align.torch.gguf import load_gguf
from infer_align.torch.networks import Network, SharedModel


class CausalLM:
    r"""A causal language model as a conditional distribution over continuations.

    Parameters
    ----------
    model : PreTrainedModel
        Any Hugging Face causal language model. It is put in evaluation mode and its parameters
        are frozen, in place; `trainable` gives what can be fitted.
    tokenizer : PreTrainedTokenizerBase or None
        Its tokenizer, never modified. Without one, prompts are token ids and there is no text.
    max_new_tokens : int
        T, the longest outcome.
    eos_token_ids : sequence of int, optional
        Tokens that end an outcome. By default those of the model's generation configuration,
        else of its configuration, else of the tokenizer. ``()`` for outcomes of exactly T.
    start_token_id : int, optional
        The prompt that ``None`` stands for. By default the tokenizer's BOS, else the model's,
        else the first EOS. (Check it: SmolLM2-Instruct's BOS begins a chat message, and a
        document begins with ``<|endoftext|>``, id 0.)
    token_budget : int
        Largest number of tokens of one forward pass, padding and prompts included. The logits
        of a pass take ``token_budget * vocab_size * 4`` bytes.

    Raises
    ------
    ValueError
        If ``max_new_tokens`` is below 1, no EOS is known, or the network's context is shorter.

    Examples
    --------
    >>> import torch
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> config = GPT2Config(vocab_size=5, n_embd=8, n_layer=1, n_head=2, n_positions=8,
    ...                     bos_token_id=0, eos_token_id=4)
    >>> lm = CausalLM(GPT2LMHeadModel(config), None, max_new_tokens=4)
    >>> continuations = lm([[1, 2], [3]])
    >>> continuations.batch_shape, continuations.event_shape
    (torch.Size([2]), torch.Size([4]))
    >>> value = continuations.sample((7,))
    >>> tuple(continuations.log_prob(value).shape)
    (7, 2)
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        max_new_tokens: int,
        eos_token_ids: Sequence[int] | None = None,
        start_token_id: int | None = None,
        token_budget: int = 2048,
    ):
        _check_length(max_new_tokens, None)
        token_budget = count("token_budget", token_budget)
        eos = (
            storage.default_eos(model, tokenizer) if eos_token_ids is None else tuple(eos_token_ids)
        )
        model.eval().requires_grad_(requires_grad=False)
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.start_token_id = (
            storage.default_start(model, tokenizer, eos)
            if start_token_id is None
            else start_token_id
        )
        self._network = Network(SharedModel(model), None, eos, token_budget)
        self._prior: CausalLM | None = None
        _check_length(max_new_tokens, self._network.context_length)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        max_new_tokens: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        gguf_file: str | None = None,
        eos_token_ids: Sequence[int] | None = None,
        start_token_id: int | None = None,
        token_budget: int = 2048,
    ) -> "CausalLM":
        """Load a folder, a GGUF file, or a model of the Hugging Face hub.

        Parameters
        ----------
        path_or_id : str or pathlib.Path
            A folder as ``save_pretrained`` writes it, a ``.gguf`` file, or a hub id. A
            `pathlib.Path`, and a text whose first part is a folder here, are never hub ids.
        max_new_tokens : int
            T, the longest outcome.
        dtype : torch.dtype
            Type of the weights. Importance weights need float32: in bfloat16 sampling and
            scoring disagree by up to 0.7 nats per sequence (see `sample_score_difference`).
        device : str or torch.device
            Where to run.
        gguf_file : str, optional
            Name of the GGUF file within the folder ``path_or_id``.
        eos_token_ids, start_token_id, token_budget
            As for `CausalLM`.

        Raises
        ------
        FileNotFoundError
            If there is no such folder, file or model.
        ValueError
            If a file of it is damaged.
        """
        path = Path(os.path.expanduser(path_or_id))
        if gguf_file is not None:
            path = path / gguf_file
        if path.suffix == ".gguf":
            if not path.is_file():
                raise FileNotFoundError(f"no GGUF file {path}: give the path of an existing file")
            model, tokenizer = load_gguf(path, dtype=dtype)
        else:
            if (path / storage.SETTINGS).is_file():
                storage.check_whole(path.absolute())
            model, tokenizer = storage.load_folder(path_or_id, dtype)
        return cls(
            model.to(torch.device(device)),  # type: ignore[arg-type]
            tokenizer,
            max_new_tokens=max_new_tokens,
            eos_token_ids=eos_token_ids,
            start_token_id=start_token_id,
            token_budget=token_budget,
        )

    def __call__(self, prompts: Sequence[prompts_.Prompt] | Tensor | None = None) -> Continuations:
        """Distribution of the continuations of some prompts.

        Parameters
        ----------
        prompts : sequence, or None
            One entry per context: a text, a list of chat messages (``{"role", "content"}``),
            a sequence of token ids, or ``None``. Lengths may differ. ``None`` instead of a
            list is one unconditional context, without an axis.

        Returns
        -------
        Continuations
            With ``batch_shape`` ``(len(prompts),)``, or ``()`` for ``None``.
        """
        encoded = self.encode_prompts([None] if prompts is None else prompts)
        index = torch.arange(len(encoded))
        return Continuations(
            self._network, encoded, index[0] if prompts is None else index, self.max_new_tokens
        )

    def encode_prompts(self, prompts: Sequence[prompts_.Prompt] | Tensor) -> list[list[int]]:
        """Token ids of prompts, with the tokenizer's BOS (once) and the chat template.

        Raises
        ------
        ValueError
            For an empty list or prompt, ids out of range, or a prompt longer than the context
            leaves room for.
        """
        limit = self._network.context_length
        return prompts_.encode(
            prompts,
            self.tokenizer,
            start_token_id=self.start_token_id,
            vocab_size=self.vocab_size,
            # The last new token is never read.
            room=None if limit is None else limit - self.max_new_tokens + 1,
        )

    def decode(self, value: Int[Tensor, "*n_contexts T"]) -> str | list:
        r"""Text of outcomes, special tokens and EOS left out.

        Parameters
        ----------
        value : int tensor (n, \*contexts, T)
            Outcomes.

        Returns
        -------
        nested list of str
            Of shape ``(n, *contexts)``. A view for people and rewards: it is never encoded
            again.
        """
        if self.tokenizer is None:
            raise ValueError("this CausalLM has no tokenizer, so its outcomes have no text")
        rows = value.reshape(-1, value.shape[-1])
        ends = self.lengths(rows) - self._network.is_eos(rows).any(-1).long()
        texts: list = self.tokenizer.batch_decode(
            [row[:end] for row, end in zip(rows.tolist(), ends.tolist(), strict=True)],
            skip_special_tokens=True,
        )
        for size in reversed(value.shape[1:-1]):
            texts = [texts[i : i + size] for i in range(0, len(texts), size)]
        return texts if value.ndim > 1 else texts[0]

    def lengths(self, value: Int[Tensor, "*n_contexts T"]) -> Int[Tensor, "*n_contexts"]:
        """Number of tokens of each outcome, its EOS included: shape ``value.shape[:-1]``."""
        return scoring.lengths(self._network, value)

    def sample_score_difference(
        self,
        prompts: Sequence[prompts_.Prompt] | Tensor | None = None,
        *,
        n: int = 64,
        generator: torch.Generator | None = None,
    ) -> float:
        """Largest ``|sampled - scored|`` log-probability over n outcomes per prompt, in nats.

        The sampler's numbers come from a key-value cache, the scorer's from whole sequences.
        In float32 they agree to about 1e-4; what they differ by is noise in the log-weights.
        """
        continuations = self(prompts)
        value, sampled = continuations.sample_with_log_prob((n,), generator=generator)
        with torch.no_grad():
            return float((continuations.log_prob(value) - sampled).abs().max())

    def trainable(
        self,
        *,
        lora: int | None = None,
        target_modules: str | list[str] = "all-linear",
        alpha: int | None = None,
        seed: int = 0,
    ) -> "CausalLM":
        """A policy to fit, equal to this model at first; this model becomes its `prior`.

        Parameters
        ----------
        lora : int, optional
            Rank of a low-rank adapter (``peft``, dropout 0) that shares this model's network.
            ``None`` copies the network and trains all of it.
        target_modules : str or list of str
            Layers that get an adapter, in ``peft``'s terms.
        alpha : int, optional
            The adapter's output is scaled by ``alpha / lora``; ``2 * lora`` by default.
        seed : int
            Of the adapter's random factor (the other starts at zero).

        Returns
        -------
        CausalLM
            Its `parameters` require a gradient; this model keeps its own, bitwise.
        """
        if self._prior is not None:
            raise ValueError("this model is trainable already: call trainable() on its .prior")
        policy = copy.copy(self)
        policy._prior = self
        shared = self._network.shared
        if lora is None:
            module = storage.plain_copy(shared)
            policy._network = self._beside(
                SharedModel(module.requires_grad_(requires_grad=True)), None
            )
            return policy
        rank = count("lora, the rank of the adapter,", lora)
        if alpha is not None:
            positive("alpha", alpha)
        seed = count("seed", seed, low=0)
        with alone(), torch.random.fork_rng():
            torch.manual_seed(seed)
            name = shared.add_adapter(
                rank=rank, alpha=alpha or 2 * rank, target_modules=target_modules
            )
        policy._network = self._beside(shared, name)
        return policy

    @property
    def prior(self) -> "CausalLM":
        """The frozen model that this policy started from."""
        if self._prior is None:
            raise ValueError("this model is not a policy: make one with .trainable()")
        return self._prior

    @property
    def is_trainable(self) -> bool:
        """True for what `trainable` returned."""
        return self._prior is not None

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that a fit changes; none for a frozen model."""
        if self._prior is None:
            return
        shared, adapter = self._network.shared, self._network.adapter
        if adapter is None:
            yield from shared.module.named_parameters()
        else:
            yield from shared.adapter_parameters(adapter).items()

    def parameters(self) -> Iterable[nn.Parameter]:
        """Parameters that a fit changes, for an optimiser."""
        return (p for _, p in self.named_parameters())

    def save(self, path: str | Path) -> None:
        """Write the model to a folder, as safetensors only.

        A full model loads in plain Transformers, with its tokenizer, chat template and generation
        configuration. An adapter loads in plain ``peft`` over its base, and by
        ``AutoPeftModelForCausalLM.from_pretrained(path)`` where the base is a folder or on the hub
        (with ``gguf_file=`` where it is a GGUF file); the tokenizer is written beside it. `load`
        reads both.

        Parameters
        ----------
        path : str or pathlib.Path
            The folder, made if it is not there.

        Raises
        ------
        FileExistsError
            If the folder holds a model of the other kind, full or adapter.
        """
        folder = Path(path)
        shared, adapter = self._network.shared, self._network.adapter
        storage.check_kind(folder, adapter=adapter is not None)
        folder.mkdir(parents=True, exist_ok=True)
        _files.unseal(folder)
        if adapter is not None:
            storage.save_adapter(shared, adapter, folder)
        else:
            module = shared.module if shared.peft is None else storage.plain_copy(shared)
            module.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        base = self if adapter is not None else self._prior
        law = self._law() if base is None else base._law()
        if base is None:  # of what it was fitted from, which nobody knows
            del law[storage.FINGERPRINT]
        settings = {"max_new_tokens": self.max_new_tokens} | law
        text = json.dumps(settings, indent=1) + "\n"
        (folder / storage.SETTINGS).write_text(text, encoding="utf-8")

    def save_pretrained(self, save_directory: str | Path) -> None:
        """`save`, under the name that it has in Transformers and PEFT.

        Parameters
        ----------
        save_directory : str or pathlib.Path
        """
        self.save(save_directory)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: bool | str | None = None,
        commit_message: str = "Upload CausalLM",
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload what `save` writes to the Hugging Face hub.

        Parameters
        ----------
        repo_id : str
            ``owner/name``, made if it is not there.
        private : bool, optional
            Of a new repository; the owner's default if left out.
        token : bool or str, optional
            Of the hub; the one of ``hf auth login`` by default.
        commit_message : str
        revision : str, optional
            Branch, made if it is not there.
        create_pr : bool
            Open a pull request instead of committing.

        Returns
        -------
        str
            Address of the commit.

        Raises
        ------
        ValueError
            For an adapter whose base is not on the hub, where nobody could load it.
        """
        shared, adapter = self._network.shared, self._network.adapter
        if adapter is not None:
            base = storage.base_of(shared, adapter)
            if base is None or storage.local_path(base) is not None:
                raise ValueError(
                    f"the adapter's base is {base or 'a model made in memory'}, which nobody else "
                    "can load: push the base first and load it by its hub id, or push a full "
                    "model (trainable() without lora)"
                )
        api = HfApi(token=token)
        repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr:
            api.create_branch(repository, branch=revision, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            commit = api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message=commit_message,
                revision=revision, create_pr=create_pr,
            )  # fmt: skip
        return commit.commit_url

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        prior: "CausalLM | None" = None,
        max_new_tokens: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> "CausalLM":
        """Load what `save` wrote.

        Parameters
        ----------
        path : str or pathlib.Path
            The folder.
        prior : CausalLM, optional
            The model that was fitted. An adapter needs it. With it the result is a policy that
            can be fitted further; a full model without it is a frozen model.
        max_new_tokens : int, optional
            T; as saved by default.
        dtype, device
            As for `from_pretrained`, of a full model.

        Raises
        ------
        FileNotFoundError
            If the folder is not one that `save` wrote.
        ValueError
            If an adapter is loaded without its prior, or a policy with a prior of other weights,
            EOS ids or start token than the one that it was fitted from; if a file is not as the
            folder's ``manifest.json`` says, where it has one.
        """
        folder = Path(os.path.expanduser(path)).absolute()
        storage.check_whole(folder)
        settings = storage.read_settings(folder)
        if prior is not None:
            storage.check_prior(folder, settings, prior._law())
        if max_new_tokens is not None:
            settings["max_new_tokens"] = max_new_tokens
        if not (folder / storage.ADAPTER_CONFIG).is_file():
            settings.pop(storage.FINGERPRINT, None)  # of the prior
            model, tokenizer = storage.load_folder(folder, dtype)
            lm = cls(model.to(torch.device(device)), tokenizer, **settings)  # type: ignore[arg-type]
            if prior is not None:
                lm._prior = prior
                lm._network.shared.module.requires_grad_(requires_grad=True)
            return lm
        storage.check_adapter(folder)
        if prior is None:
            raise ValueError(
                f"{folder} holds an adapter: pass prior=, the model that it was fitted from"
            )
        _check_length(settings["max_new_tokens"], prior._network.context_length)
        policy = copy.copy(prior)
        policy._prior = prior
        policy.max_new_tokens = settings["max_new_tokens"]
        shared = prior._network.shared
        policy._network = prior._beside(shared, shared.load_adapter(str(folder)))
        return policy

    @property
    def module(self) -> PreTrainedModel:
        """The Transformers model, with this model's adapter (or none) switched on."""
        self._network.activate()
        return self._network.shared.module

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an outcome."""
        return self._network.eos_token_ids

    @property
    def vocab_size(self) -> int:
        """Number of token ids that have a probability."""
        return self._network.vocab_size

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self._network.device

    @property
    def token_budget(self) -> int:
        """Largest number of tokens of one forward pass."""
        return self._network.token_budget

    @property
    def counts(self) -> Counter:
        """Rows sampled, scored, scored with a gradient, and network calls, since the start.

        Keys ``sampled_rows``, ``scored_rows``, ``grad_rows`` and ``network_calls``. One
        on-policy step on ``n * P`` rows samples them once, scores them once under the prior,
        and once with gradient under the policy.
        """
        return self._network.counts

    def __repr__(self):
        kind = type(self._network.shared.module).__name__
        adapter = f", adapter={self._network.adapter!r}" if self._network.adapter else ""
        return (
            f"CausalLM({kind}, max_new_tokens={self.max_new_tokens}, "
            f"eos_token_ids={self.eos_token_ids}, trainable={self.is_trainable}{adapter})"
        )

    def _law(self) -> dict[str, Any]:
        """What makes an adapter on this network the policy that it is, beside the adapter."""
        return {
            "eos_token_ids": list(self.eos_token_ids),
            "start_token_id": self.start_token_id,
            storage.FINGERPRINT: storage.base_fingerprint(self._network.shared.module),
        }

    def _beside(self, shared: SharedModel, adapter: str | None) -> Network:
        return Network(shared, adapter, self.eos_token_ids, self.token_budget)


def _check_length(max_new_tokens: int, limit: int | None) -> None:
    count("max_new_tokens", max_new_tokens)
    if limit is not None and max_new_tokens > limit:
        raise ValueError(
            f"max_new_tokens is {max_new_tokens}, but the model's context holds {limit} tokens"
        )
