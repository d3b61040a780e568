"""The model as lm-evaluation-harness calls it: text in, log-likelihoods and text out, in any layout of ranks.

Every rank makes the same calls and gets the same answers, so the harness takes each for the only one. Text becomes ids as in the
harness's own Hugging Face backend, special tokens included, so that scores equal those of the exported folder there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tokenizers import Tokenizer

from megatron_cpt.errors import ConfigError
from megatron_cpt.eval.continuations import Continuation, score_continuations
from megatron_cpt.eval.forward import Progress
from megatron_cpt.eval.generate import generate_greedy

MAX_NEW_TOKENS = 256  # where a task says none: the number of the harness's Hugging Face backend
UNSUPPORTED = ("top_p", "top_k", "min_p", "num_beams", "repetition_penalty")


class RanksLM(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """A model on ranks. Every method that scores or generates is collective.

    Attributes:
        joined: by task, the documents where the tokenizer joins the context's end with a continuation's beginning.
    """

    def __init__(
        self,
        chunks: list[Any],
        tokenizer: Tokenizer,
        *,
        end_id: int,
        window_tokens: int,
        micro_batch_size: int,
        seed: int,
        torch_device: torch.device,
        progress: Progress,
    ) -> None:
        super().__init__()
        self._chunks, self._tokenizer, self._end_id, self._seed = chunks, tokenizer, end_id, seed
        self._running: dict[str, Any] = {
            "prefix_id": None,
            "window_tokens": window_tokens,
            "micro_batch_size": micro_batch_size,
            "device": torch_device,
            "progress": progress,
        }
        self.joined: dict[str | None, set[int | None]] = defaultdict(set)

    @property
    def eot_token_id(self) -> int:
        """The document separator: it ends a generation, and stands before a text that nothing else stands before."""
        return self._end_id

    @property
    def max_length(self) -> int:
        return int(self._running["window_tokens"])

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return ids, with the special tokens that the tokenizer itself puts around a text unless told not to."""
        return list(self._tokenizer.encode(string, add_special_tokens=add_special_tokens is not False).ids)

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each request's continuation and whether greedy decoding gives it."""
        return self._score([self._continuation(request) for request in requests])

    def _continuation(self, request: Instance) -> Continuation:
        """Encode a request: the ids after those of the context alone are the continuation's.

        Where the tokenizer joins the two so that none is left, the continuation is encoded by itself.
        """
        context, continuation = request.args
        if not context.strip():
            ids = self.tok_encode(context + continuation, add_special_tokens=False)
            if len(ids) > 1 and ids[0] == self._end_id:
                return Continuation(tuple(ids[:1]), tuple(ids[1:]))
            return Continuation((self._end_id,), tuple(ids))
        context_ids, continuation_ids = self._encode_pair(context, continuation)
        if self.tok_encode(context + continuation)[: len(context_ids)] != context_ids:
            self.joined[request.task_name].add(request.doc_id)
        if not continuation_ids:
            continuation_ids = self.tok_encode(continuation, add_special_tokens=False)
        return Continuation(tuple(context_ids), tuple(continuation_ids))

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        return self._score([Continuation(tuple(context), tuple(ids)) for _, context, ids in requests])

    def _score(self, items: Sequence[Continuation]) -> list[tuple[float, bool]]:
        return [(-score.nats, score.is_greedy) for score in score_continuations(self._chunks, items, **self._running)]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts, in the harness's windows: each token once, the last window with a full context."""
        items, owners = [], []
        for number, request in enumerate(requests):
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0]), prefix_token=self._end_id, max_seq_len=self.max_length, context_len=1
            )
            for context, ids in map(make_disjoint_window, windows):
                items.append(Continuation(tuple(context), tuple(ids)))
                owners.append(number)
        sums = [0.0] * len(requests)
        for number, (log_likelihood, _) in zip(owners, self._score(items), strict=True):
            sums[number] += log_likelihood
        return sums

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return each request's text up to its first stop string.

        Raises:
            ConfigError: a task asks for a way to sample that is not made here.
        """
        groups: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            groups[repr(sorted(request.args[1].items()))].append(number)
        texts = [""] * len(requests)
        for numbers in groups.values():
            new = self._generate([requests[number].args[0] for number in numbers], requests[numbers[0]].args[1])
            for number, text in zip(numbers, new, strict=True):
                texts[number] = text
        return texts

    def _generate(self, contexts: Sequence[str], settings: dict[str, Any]) -> list[str]:
        wanted = normalize_gen_kwargs(settings, MAX_NEW_TOKENS)
        refused = [key for key in UNSUPPORTED if wanted["do_sample"] and wanted.get(key) not in (None, 1, 1.0)]
        if refused:
            raise ConfigError(
                "A task asks for a way to sample that is not made here.", where="generation_kwargs", value=", ".join(refused),
                rule="greedy, or do_sample with a temperature",
            )  # fmt: skip
        until = handle_stop_sequences(wanted.get("until"), eos=self._decode([self._end_id], skip_special_tokens=False))

        def is_finished(ids: Sequence[int]) -> bool:
            text = self._decode(ids)
            return any(stop in text for stop in until if stop)

        new_ids = generate_greedy(
            self._chunks,
            [self.tok_encode(context) or [self._end_id] for context in contexts],
            max_new_tokens=wanted["max_gen_toks"],
            stop_ids=(self._end_id,),
            temperature=wanted["temperature"] if wanted["do_sample"] else 0.0,
            seed=self._seed,
            is_finished=is_finished,
            **self._running,
        )
        return [postprocess_generated_text(self._decode(ids), stop=until, think_end_token=None) for ids in new_ids]

    def _decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))
