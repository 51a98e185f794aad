"""Useful tokens per CPU second and peak memory of whole training programs: ours, Trainer, FastChat's recipe.

    [FASTCHAT_PYTHON=.../bin/python] .venv/bin/python tests/benchmarks/training.py [--repeat 3] [--json FILE]

One LLaMA with random weights in a folder, one corpus of real prose whose lengths are drawn lognormally (median 600,
sigma 0.9, cut at 2048), float32, AdamW, one thread each. Every side is the program a user would start, in a process
of its own, and trains on the same conversations in the same order; the sides take turns.

    packed, unpacked  ours: python -m trainer
    trainer           transformers' Trainer of this environment, each batch padded to its longest conversation
    recipe            the same Trainer fed as FastChat feeds it: each row padded to 2048
    fastchat          FastChat's own train.py with its own transformers, once (only where FASTCHAT_PYTHON names one)
    ...-1             the same with one conversation a pass instead of four: nothing to pad, so loop against loop

CPU seconds and memory are read from outside, of the process with its children, from the end of step WARM to the end
of the last step: start-up, saving and export are not in them. A useful token is one that is not padding. Memory is
the largest sum of PSS in that time. Then 50 steps of a small model, unpacked ones against Trainer's: their losses.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

RIVALS = Path(__file__).with_name("training_rivals.py")
MAX_LENGTH, GLOBAL = 2048, 8
PER_DEVICE = 4  # as in FastChat's README and in our recipes
WARM = 1  # steps before the window: the first ones fill allocators
VOCABULARY = 4096
CURVE_STEPS, CURVE_LENGTH = 50, 256
SHARE_OF_ANSWERS = 0.86  # of a conversation's tokens: measured on 3,000 conversations of ShareGPT's shape
TOKENS_PER_WORD = 1.76  # of this corpus under a tokeniser of 4,096 pieces
SIDES = ("packed", "unpacked", "trainer", "recipe", "unpacked-1", "trainer-1", "fastchat")
COMPARED = [
    *[("packed", side) for side in ("recipe", "fastchat", "trainer")],
    ("unpacked", "trainer"),
    ("unpacked-1", "trainer-1"),
]


@dataclass(frozen=True)
class Shape:
    """Of the network; --hidden and --layers change it."""

    hidden: int
    layers: int


@dataclass
class Watched:
    """What a tree of processes had used, by time."""

    times: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)

    def cpu_at(self, moment: float) -> float:
        return float(np.interp(moment, self.times, self.cpu_s))

    def peak_mb(self, begin: float, end: float) -> float:
        return max(size for at, size in self.memory if begin <= at <= end) / 1e6


@dataclass(frozen=True)
class Outcome:
    """Of one run of one side, within the window."""

    tokens: int
    cpu_s: float
    peak_mb: float
    losses: list[float]

    @property
    def rate(self) -> float:
        return self.tokens / self.cpu_s


# --- what all sides get -----------------------------------------------------------------------


@lru_cache
def words() -> list[str]:
    """Real prose in one long row: the documentation of Python's standard library."""
    from trainer.data.example import example_corpus

    train, _ = example_corpus()
    return [word for each in train for turn in each.turns for word in turn.text.split()]


def write_conversations(path: Path, count: int, longest: int) -> None:
    """ShareGPT JSON with lengths of ShareGPT's shape, in random order."""
    chance = np.random.default_rng(0)
    lengths = np.clip(chance.lognormal(np.log(600), 0.9, count), 60, MAX_LENGTH) * longest / MAX_LENGTH
    source, at, samples = words(), 0, []
    for number, length in enumerate(lengths):
        left = max(8, int((length - 40 * longest / MAX_LENGTH) / TOKENS_PER_WORD))
        rounds = min(1 + chance.geometric(0.4), 1 + left // 40)
        turns = []
        for size in chance.multinomial(left, [1 / rounds] * rounds):
            asked = max(1, int(size * (1 - SHARE_OF_ANSWERS)))
            said = max(1, int(size) - asked)
            at = (at + asked + said) % (len(source) - 4000)
            question, answer = source[at : at + asked], source[at + asked : at + asked + said]
            turns += [
                {"from": "human", "value": " ".join(question)},
                {"from": "gpt", "value": " ".join(answer)},
            ]
        samples.append({"id": f"c{number}", "conversations": turns})
    path.write_text(json.dumps(samples))


def write_base(folder: Path, tokeniser: Path, shape: Shape) -> None:
    """A LLaMA of random weights beside its tokeniser, as from_pretrained and --model read it."""
    import shutil

    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=shape.hidden, intermediate_size=shape.hidden * 11 // 4,
        num_hidden_layers=shape.layers, num_attention_heads=shape.hidden // 32,
        num_key_value_heads=shape.hidden // 32, max_position_embeddings=MAX_LENGTH, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for path in tokeniser.iterdir():
        shutil.copy(path, folder / path.name)


def write_tokeniser(folder: Path, data: Path) -> None:
    """FastChat's masks fit SentencePiece's tokens alone, so where it takes part all sides get such a tokeniser."""
    from tests.benchmarks.corpus import TRAIN_TOKENISER
    from trainer.conversation import get_template
    from trainer.tokenize import train_tokeniser

    folder.mkdir()
    theirs = os.environ.get("FASTCHAT_PYTHON")
    if theirs:
        program = TRAIN_TOKENISER.replace("vocab_size=32000", f"vocab_size={VOCABULARY}")
        subprocess.run([theirs, "-c", program, str(data), str(folder)], check=True, stderr=subprocess.DEVNULL)
        return
    samples = json.loads(data.read_text())
    texts = (turn["value"] for sample in samples for turn in sample["conversations"])
    train_tokeniser(texts, VOCABULARY, get_template("vicuna_v1.1")).save_pretrained(folder)


@dataclass(frozen=True)
class Setting:
    """Files that all sides share."""

    folder: Path
    base: Path
    data: Path
    corpus: Path
    max_length: int
    steps: int
    learning_rate: float

    @classmethod
    def make(cls, folder: Path, shape: Shape, longest: int, steps: int, rate: float) -> Setting:
        from trainer.conversation import get_template
        from trainer.data.read import read_corpus
        from trainer.encode import Encoder
        from trainer.tokenize import load_tokeniser, write_corpus

        folder.mkdir()
        base, data, corpus = folder / "base", folder / "data.json", folder / "corpus"
        # Packed steps hold about three times as many conversations as the others.
        write_conversations(data, 4 * GLOBAL * steps, longest)
        write_tokeniser(folder / "tokeniser", data)
        write_base(base, folder / "tokeniser", shape)
        template = get_template("vicuna_v1.1")
        encoder = Encoder(load_tokeniser(str(base), template), template)
        counts = write_corpus(read_corpus([data]), encoder, longest, corpus)
        assert not counts.untrained, "numbers of conversations must be those of the file"
        return cls(folder, base, data, corpus, longest, steps, rate)

    @cached_property
    def lengths(self) -> Any:
        from trainer.dataset import TokenisedCorpus

        return TokenisedCorpus(self.corpus).lengths

    def batches(self, seed: int | None = None) -> list[list[int]]:
        """The conversations of each step under our own sampler, nothing packed."""
        from trainer.packing import one_per_row
        from trainer.sampler import Sampler

        rows = one_per_row(len(self.lengths))
        sampler = Sampler(self.lengths, rows, GLOBAL, self.seed if seed is None else seed)
        return [[int(row[0]) for row in sampler.batch(step)] for step in range(self.steps)]

    @cached_property
    def seed(self) -> int:
        """Of sample order: the one whose few measured conversations are as long on average as all of them."""
        mean = self.lengths.mean()
        return min(
            range(200), key=lambda seed: abs(self.lengths[np.ravel(self.batches(seed)[WARM:])].mean() - mean)
        )

    def tokens(self) -> list[int]:
        """Of the conversations of each step."""
        return [int(self.lengths[batch].sum()) for batch in self.batches()]

    @property
    def warmup_steps(self) -> int:
        return -(-self.steps * 3 // 100)  # ceil(0.03 * steps), as both transformers and we do


# --- one run of one side ----------------------------------------------------------------------


def run(side: str, setting: Setting, threads: int, turn: int) -> Outcome:
    scratch = setting.folder / f"{side}-{turn}"
    scratch.mkdir()
    kind, _, given = side.partition("-")
    per_device = int(given or PER_DEVICE)
    if kind in ("packed", "unpacked"):
        command, uri = ours(setting, scratch, threads, per_device, packing=kind == "packed")
        watched = watch(command, scratch / "log")
        steps = our_steps(uri)
    else:
        command, told = theirs(kind, setting, scratch, threads, per_device)
        watched = watch(command, scratch / "log")
        steps = [json.loads(line) for line in told.read_text().splitlines()]
        tokens = np.cumsum(setting.tokens())
        steps = [{**step, "tokens": int(tokens[step["step"] - 1])} for step in steps]
    assert len(steps) == setting.steps, f"{side}: {len(steps)} steps; see {scratch / 'log'}"
    begin, end = steps[WARM - 1], steps[-1]
    return Outcome(
        tokens=end["tokens"] - begin["tokens"],
        cpu_s=watched.cpu_at(end["time"]) - watched.cpu_at(begin["time"]),
        peak_mb=watched.peak_mb(begin["time"], end["time"]),
        losses=[step["loss"] for step in steps],
    )


def ours(
    setting: Setting, scratch: Path, threads: int, per_device: int, *, packing: bool
) -> tuple[list[str], str]:
    from tests.trainer.runs import create_run

    uri = str(scratch / "runs/one")
    create_run(
        uri, setting.data, model__shape=None, model__vocab_size=None, model__base=str(setting.base),
        model__dropout=0.0, data__packing=packing, data__max_length=setting.max_length,
        train__max_steps=setting.steps, train__global_batch_size=GLOBAL,
        train__per_device_train_batch_size=per_device, train__learning_rate=setting.learning_rate,
        train__seed=setting.seed, train__eval_strategy="no", train__logging_seconds=1.0,
        checkpoint__save_steps=1_000_000,
        parallel__threads=threads,
    )  # fmt: skip
    return [sys.executable, "-m", "trainer", "--run", uri, "--workdir", str(scratch / "box")], uri


def our_steps(uri: str) -> list[dict[str, Any]]:
    from trainer.artifacts.metrics import read_metrics
    from trainer.artifacts.store import open_store

    steps, _ = read_metrics(open_store(uri))
    return [{"time": step.time, "tokens": step.tokens, "loss": step.loss} for step in steps]


def theirs(
    side: str, setting: Setting, scratch: Path, threads: int, per_device: int
) -> tuple[list[str], Path]:
    import torch

    told = scratch / "steps.jsonl"
    plan = {
        "scratch": str(scratch / "out"), "steps": str(told), "base": str(setting.base), "data": str(setting.data),
        "corpus": str(setting.corpus), "batches": setting.batches(), "max_length": setting.max_length,
        "per_device": per_device, "accumulation": GLOBAL // per_device, "learning_rate": setting.learning_rate,
        "warmup_steps": setting.warmup_steps, "threads": threads,
        "site_packages": str(Path(torch.__file__).parents[1]),
    }  # fmt: skip
    (scratch / "plan.json").write_text(json.dumps(plan))
    python = os.environ["FASTCHAT_PYTHON"] if side == "fastchat" else sys.executable
    return [python, str(RIVALS), side, str(scratch / "plan.json")], told


def watch(command: list[str], log: Path) -> Watched:
    """Run it to its end, reading CPU and memory of it and its children all the while."""
    # OpenMP threads that have nothing to do sleep, on every side: spinning would count as work.
    quiet = {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    watched = Watched()
    with log.open("w") as out:
        process = psutil.Popen(command, stdout=out, stderr=out, env={**os.environ, **quiet}, cwd=log.parent)
        over = threading.Event()
        watcher = threading.Thread(target=_sample, args=(process, watched, over), daemon=True)
        watcher.start()
        status = process.wait()
        over.set()
        watcher.join()
    if status:
        raise SystemExit(f"{command} failed:\n{log.read_text()[-3000:]}")
    return watched


def _sample(root: psutil.Process, watched: Watched, over: threading.Event) -> None:
    turn = 0
    while not over.wait(0.02):
        with suppress(psutil.Error, OSError):
            tree = [root, *root.children(recursive=True)]
            now = time.time()
            used = [process.cpu_times() for process in tree]
            watched.times.append(now)
            watched.cpu_s.append(sum(t.user + t.system + t.children_user + t.children_system for t in used))
            if turn % 10 == 0:
                watched.memory.append((now, sum(process.memory_full_info().pss for process in tree)))
        turn += 1


# --- the report -------------------------------------------------------------------------------


def report(found: dict[str, list[Outcome]]) -> dict[str, Any]:
    print(f"\n{'side':<12} {'tokens':>7} {'CPU s':>7} {'tokens/CPU s':>13} {'least-most':>11} {'peak MB':>8}")
    figures: dict[str, Any] = {}
    for side, outcomes in found.items():
        by_rate = sorted(outcomes, key=lambda outcome: outcome.rate)
        middle, spread = by_rate[len(by_rate) // 2], [round(outcome.rate) for outcome in by_rate]
        peak = statistics.median(outcome.peak_mb for outcome in outcomes)
        print(
            f"{side:<12} {middle.tokens:>7} {middle.cpu_s:>7.2f} {middle.rate:>13.0f} "
            f"{f'{spread[0]}-{spread[-1]}':>11} {peak:>8.0f}"
        )
        figures[side] = {"tokens_per_cpu_s": middle.rate, "all": spread, "peak_mb": peak}
    for mine, other in COMPARED:
        if mine in figures and other in figures:
            rate, memory = (
                figures[mine][key] / figures[other][key] for key in ("tokens_per_cpu_s", "peak_mb")
            )
            print(
                f"{mine} against {other}: {rate:.2f} times the tokens per CPU s, {memory:.2f} times the memory"
            )
    return figures


def curve(setting: Setting, threads: int) -> float:
    """Largest difference of a step's loss, ours against Trainer's."""
    mine, other = (run(side, setting, threads, 0).losses for side in ("unpacked", "trainer"))
    print(f"\n{'step':>4} {'ours':>12} {'Trainer':>12}")
    for step in (0, 9, 19, 29, 39, len(mine) - 1):
        print(f"{step + 1:>4} {mine[step]:>12.7f} {other[step]:>12.7f}")
    worst = max(abs(a - b) for a, b in zip(mine, other, strict=True))
    print(f"largest difference over {len(mine)} steps: {worst:.1e}")
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="optimiser steps, of which the first warms up")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    wanted = parser.parse_args()
    sides = [side for side in wanted.sides if side != "fastchat" or os.environ.get("FASTCHAT_PYTHON")]
    with tempfile.TemporaryDirectory() as scratch:
        shape = Shape(wanted.hidden, wanted.layers)
        setting = Setting.make(Path(scratch) / "speed", shape, MAX_LENGTH, wanted.steps, 2e-5)
        mean = setting.lengths.mean()
        print(
            f"{len(setting.lengths)} conversations, mean {mean:.0f} tokens, {mean / MAX_LENGTH:.1%} of a padded row"
        )
        found: dict[str, list[Outcome]] = {side: [] for side in sides}
        for turn in range(wanted.repeat):
            for side in sides if turn == 0 else [side for side in sides if side != "fastchat"]:
                found[side].append(run(side, setting, wanted.threads, turn))
                print(f"  {turn} {side}: {found[side][-1].rate:.0f}", flush=True)
        figures = report(found)
        small = Setting.make(Path(scratch) / "curve", Shape(64, 2), CURVE_LENGTH, CURVE_STEPS, 1e-3)
        figures["largest_loss_difference"] = curve(small, wanted.threads)
    if wanted.json:
        wanted.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
