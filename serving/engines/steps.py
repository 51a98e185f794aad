"""The thread that owns the model: takes requests in, computes step after step, hands deltas to the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence

import torch

from serving.engine import Delta, Logprob
from serving.engines.adapters import Adapters
from serving.engines.network import Network
from serving.engines.request import Finish, Request
from serving.engines.sampling import Chosen, choose
from serving.engines.scheduler import Part, Scheduler
from serving.engines.text import Vocabulary

log = logging.getLogger("vlaunch.engine")

News = tuple[Request, Delta | Exception]


class Steps:
    """`submit` and `cancel` are called on the event loop; `_` methods but `_deliver` run in the thread."""

    def __init__(
        self, network: Network, adapters: Adapters, scheduler: Scheduler, vocabulary: Vocabulary
    ) -> None:
        self._network = network
        self._adapters = adapters
        self._scheduler = scheduler
        self._vocabulary = vocabulary
        self._arrived: deque[Request] = deque()
        self._news = threading.Condition()
        self._stopping = False
        self._fault: BaseException | None = None
        self._seconds = 1.0  # that an answer takes, smoothed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread.start()

    def submit(self, request: Request) -> None:
        if self._stopping or self._fault is not None:
            raise RuntimeError("the engine has stopped") from self._fault
        with self._news:
            self._arrived.append(request)
            self._news.notify()

    def cancel(self, request: Request) -> None:
        """Its place and memory are free at the next step; harmless for a request that is over."""
        request.cancelled = True

    def stop(self) -> None:
        """End the thread after the step under way. Requests that are not over fail."""
        with self._news:
            self._stopping = True
            self._news.notify()
        if self._thread.is_alive():
            self._thread.join()

    def load(self) -> tuple[int, int]:
        return len(self._scheduler.running), len(self._scheduler.waiting) + len(self._arrived)

    def healthy(self) -> bool:
        return self._thread.is_alive() and not self._stopping and self._fault is None

    def retry_after_s(self) -> float:
        """When one of those who wait now may have been let in: a guess from how long answers took."""
        running, waiting = self.load()
        return min(60.0, max(1.0, self._seconds * waiting / max(1, running)))

    def _run(self) -> None:
        try:
            while self._take_arrived():
                if parts := self._scheduler.step():
                    self._step(parts)
                elif self._scheduler.everything():
                    raise RuntimeError("requests are left, but nothing can be computed")
        except BaseException as error:  # whatever it is: those who wait must hear of it
            log.exception("the model's thread failed")
            self._fault = error
        self._fail_all()

    def _take_arrived(self) -> bool:
        """Requests that have come; waits for one if there is nothing else to do. False when it is time to stop."""
        with self._news:
            while not self._stopping and not self._arrived and not self._scheduler.everything():
                self._news.wait()
            while self._arrived:
                self._scheduler.add(self._arrived.popleft())
            return not self._stopping

    @torch.inference_mode()
    def _step(self, parts: list[Part]) -> None:
        begun = time.perf_counter()
        # Rows of one adapter lie together, so it is applied once.
        parts = sorted(parts, key=lambda part: part.request.adapter or "")
        self._adapters.rows([(part.request.adapter, len(part.tokens)) for part in parts])
        choosing = [number for number, part in enumerate(parts) if part.chooses]
        logits = self._network.step([(part.request.kv, part.tokens) for part in parts], choosing)
        news: list[News] = []
        self._pool(parts, news)
        answering = [parts[number].request for number in choosing]
        wanted = [row for row, request in enumerate(answering) if request.pooled is None]
        if wanted:
            asking = [answering[row] for row in wanted]
            rows = logits if len(wanted) == len(answering) else logits[wanted]
            for request, chosen in zip(asking, choose(rows, asking), strict=True):
                self._append(request, chosen, news)
        self._post(news)
        self._scheduler.took(parts, time.perf_counter() - begun)

    def _append(self, request: Request, chosen: Chosen, news: list[News]) -> None:
        """One more token of an answer."""
        request.tokens.append(chosen.token)
        request.pending += 1
        request.counts[chosen.token] = request.counts.get(chosen.token, 0) + 1
        if request.sampling.logprobs is not None:
            request.told.append(self._logprob(chosen))
        try:
            text, finish = self._written(request, chosen.token)
        except RuntimeError as error:  # concerns this request alone
            news.append((request, error))
            self._over(request)
            return
        if text or finish is not None:
            news.append((request, self._delta(request, text, finish)))
        if finish is not None:
            self._over(request)

    def _written(self, request: Request, token: int) -> tuple[str, Finish | None]:
        """What the token adds to the text, and whether the answer ends with it."""
        writer = request.writer
        if token in request.ends:
            return writer.end(), "stop"
        text = writer.push(token)
        enough = request.made >= request.most
        if enough:
            text += writer.end()
        if writer.stopped:
            return text, "stop"
        if request.follower is not None and request.follower.take(token):
            return text + ("" if enough else writer.end()), "stop"
        return text, "length" if enough else None

    def _delta(self, request: Request, text: str, finish: Finish | None) -> Delta:
        cached = 0 if request.begun else request.cached_tokens
        delta = Delta(text, request.pending, tuple(request.told), finish, cached)
        request.begun, request.pending, request.told = True, 0, []
        return delta

    def _logprob(self, chosen: Chosen) -> Logprob:
        top = tuple(self._token(token, logprob) for token, logprob in chosen.top)
        return self._token(chosen.token, chosen.logprob, top)

    def _token(self, token: int, logprob: float, top: tuple[Logprob, ...] = ()) -> Logprob:
        said = self._vocabulary.bytes(token)
        return Logprob(said.decode("utf-8", "replace"), said, logprob, top)

    def _pool(self, parts: Sequence[Part], news: list[News]) -> None:
        """Sums of hidden states, of those who want an embedding."""
        at = 0
        for part in parts:
            request, first = part.request, at
            at += len(part.tokens)
            if request.pooled is None:
                continue
            summed = self._network.hidden()[first:at].double().sum(dim=0).tolist()
            before = request.pooled or [0.0] * len(summed)
            request.pooled = [one + other for one, other in zip(before, summed, strict=True)]
            if part.chooses:
                news.append((request, Delta("", 0, finish="stop")))
                self._over(request)

    def _over(self, request: Request) -> None:
        self._scheduler.remove(request)
        self._seconds += 0.1 * (time.monotonic() - request.arrived - self._seconds)

    def _post(self, news: list[News]) -> None:
        """One wake-up of the event loop for all the news of a step."""
        if not news:
            return
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(_deliver, news)
        except RuntimeError:  # the loop is closed: nobody is left to hear anything
            self._stopping = True

    def _fail_all(self) -> None:
        with self._news:
            self._stopping = True
            lost = [*self._scheduler.everything(), *self._arrived]
        error = RuntimeError(
            "the engine has stopped" if self._fault is None else f"the engine failed: {self._fault}"
        )
        self._post([(request, error) for request in lost])


def _deliver(news: list[News]) -> None:
    for request, delta in news:
        request.answer.put(delta)
