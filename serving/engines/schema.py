"""Answers that are JSON of a given schema: before each token, all that would break it are ruled out.

llguidance (the library behind vLLM's and SGLang's guidance backends) follows the grammar; one Rust wheel without
dependencies, tens of microseconds a token.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from serving.engine import Refused


def available() -> bool:
    return find_spec("llguidance") is not None


class Schemas:
    """Makes a Follower for each request. Threads may share it."""

    def __init__(self, tokeniser: PreTrainedTokenizerFast, size: int, ends: frozenset[int]) -> None:
        """`size`: of the logits."""
        self._tokeniser = tokeniser
        self._size = size
        self._ends = ends
        self._known: Any = None
        self._lock = threading.Lock()

    def follow(self, schema: Mapping[str, object]) -> Follower:
        """Costs about a second for the first one and milliseconds for each: not for the event loop.

        Raises:
            Refused: this is no JSON schema, or uses what llguidance does not know; with its reason.
        """
        from llguidance import LLMatcher

        try:
            wanted = json.dumps(dict(schema) or {"type": "object"})
            matcher = LLMatcher(self._tokens(), LLMatcher.grammar_from_json_schema(wanted), log_level=0)
        except (TypeError, ValueError) as error:
            raise Refused(f"response_format: {error}") from None
        if matcher.is_error():
            raise Refused(f"response_format: {matcher.get_error().splitlines()[0]}")
        return Follower(matcher, self._size)

    def _tokens(self) -> Any:
        with self._lock:
            if self._known is None:
                from llguidance.hf import from_tokenizer

                self._known = from_tokenizer(
                    self._tokeniser, n_vocab=self._size, eos_token=sorted(self._ends) or None
                )
            return self._known


class Follower:
    """Where an answer stands in its schema."""

    def __init__(self, matcher: Any, size: int) -> None:
        self._matcher = matcher
        self._size = size

    def rule_out(self, scores: Tensor) -> None:
        """Set the scores (vocabulary,) of all tokens that may not come next to -inf, in place."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: self._size].astype(bool)
        scores.masked_fill_(torch.from_numpy(~allowed).to(scores.device), float("-inf"))

    def take(self, token: int) -> bool:
        """Go on with the token that was chosen; whether the value is complete and nothing can follow.

        Raises:
            RuntimeError: the schema has become too much for llguidance's limits.
        """
        self._matcher.consume_token(token)
        if self._matcher.is_error():
            raise RuntimeError(f"the JSON schema cannot be followed further: {self._matcher.get_error()}")
        return bool(self._matcher.is_stopped())
