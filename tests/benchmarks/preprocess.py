"""Conversations per CPU second from a file to packed tokens, memory, the second start, and masks; FastChat beside it.

    [FASTCHAT_PYTHON=.../bin/python] .venv/bin/python tests/benchmarks/preprocess.py [--repeat 3] [--sizes 2000 ...]

FASTCHAT_PYTHON: an environment with fschat 0.2.36, transformers 4.46.3 and sentencepiece; it needs no torch. Two
corpora: what shared/tools/gen_sharegpt.py generates (VLAUNCH_SHARED names shared/), cleaned and split by us, whose
words repeat more than those of prose; and the documentation of Python's standard library, real prose in short
conversations. Everything runs in a process of its own; CPU seconds are those of all its threads, loading libraries
and tokeniser not counted, on both sides.

    speed   read, tokenise, mask, write, map, pack; FastChat's side is json.load and its `preprocess`, with the slow
            tokeniser that its train.py asks for, and with the fast one that it could ask for
    memory  trainer.prepare.build on corpora of growing size; every copy of the corpus brings new words
    second  what a later attempt does instead: fetch, verify, map, pack, lay out the first epoch
    masks   1,000 conversations with role words, end marks, code and many scripts in their texts
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from tests.benchmarks.corpus import TRAIN_TOKENISER  # noqa: E402

SHARED = Path(os.environ.get("VLAUNCH_SHARED", REPOSITORY.parent / "shared"))
GENERATOR = SHARED / "tools/gen_sharegpt.py"
RIVAL = Path(__file__).with_name("preprocess_fastchat.py")
LIMIT, TARGET, SAMPLES = 2048, 5.0, 2000
NEW_WORD_EVERY = 20  # words; a copy of the corpus brings about as many new ones as the original has


# --- in a process of its own ------------------------------------------------------------------


def speed(data: str, base: str) -> dict[str, float]:
    from trainer.conversation import get_template
    from trainer.data.read import read_corpus
    from trainer.dataset import TokenisedCorpus
    from trainer.encode import Encoder
    from trainer.packing import first_fit_decreasing
    from trainer.tokenize import load_tokeniser, write_corpus

    template = get_template("vicuna_v1.1")
    encoder = Encoder(load_tokeniser(base, template), template)
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        counts = write_corpus(read_corpus([data]), encoder, LIMIT, Path(folder))
        first_fit_decreasing(TokenisedCorpus(Path(folder)).lengths, LIMIT)
        spent = time.process_time() - began
    return {"cpu_s": spent, "samples": counts.conversations, "tokens": counts.tokens}


def build(run: str, workdir: str) -> dict[str, float]:
    """The first attempt of a run: everything that a later one can fetch."""
    import trainer.tokenize  # noqa: F401
    from trainer import prepare
    from trainer.artifacts.store import open_store
    from trainer.config import decode_config

    store = open_store(run)
    config = decode_config(store.get("config.json"), "config.json")
    before, began = peak_mb(), time.process_time()
    prepare.build(store, config, Path(workdir))
    return {"cpu_s": time.process_time() - began, "before_mb": before, "peak_mb": peak_mb()}


def second(run: str, workdir: str) -> dict[str, float]:
    """What a later attempt does on its empty disk; of several, the median."""
    from trainer import prepare
    from trainer.artifacts.store import open_store
    from trainer.config import decode_config
    from trainer.dataset import TokenisedCorpus
    from trainer.packing import first_fit_decreasing
    from trainer.sampler import Sampler

    store = open_store(run)
    config = decode_config(store.get("config.json"), "config.json")
    before, wall, cpu = peak_mb(), time.monotonic(), time.process_time()
    inputs = prepare.fetch(store, config, Path(workdir))
    assert inputs is not None
    corpus = TokenisedCorpus(inputs.train)
    Sampler(corpus.lengths, first_fit_decreasing(corpus.lengths, LIMIT), 128, 42).batch(0)
    return {
        "wall_s": time.monotonic() - wall,
        "cpu_s": time.process_time() - cpu,
        "mb": sum(path.stat().st_size for path in inputs.train.iterdir()) / 1e6,
        "grown_mb": peak_mb() - before,
    }


def peak_mb() -> float:
    """The largest resident memory so far."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1e3


PARTS = {"speed": speed, "build": build, "second": second}


def apart(part: str, *words: object) -> dict[str, Any]:
    """Run a part in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--part", part, *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def fastchat(data: Path, tokeniser: Path, kind: str, count: int) -> dict[str, Any]:
    import torch

    packages = Path(torch.__file__).parents[1]
    command = [os.environ["FASTCHAT_PYTHON"], RIVAL, data, tokeniser, kind, count, packages]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


# --- corpora ----------------------------------------------------------------------------------


def vlaunch(*words: object) -> None:
    command = [sys.executable, "-m", "launcher", "--quiet", *map(str, words)]
    subprocess.run(command, check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)


def generated(folder: Path) -> tuple[Path, Path]:
    """Generated ShareGPT pages as a corpus, and a tokeniser of 32,000 pieces trained on it."""
    raw, whole, data = folder / "raw.json", folder / "whole.json", folder / "generated.json"
    subprocess.run(
        [sys.executable, str(GENERATOR), "--n", str(SAMPLES), "--out", str(raw)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    vlaunch("data", "prepare", raw, "--to", whole, "--max-length", 1_000_000, "--workers", 1)
    tokeniser = train(folder / "generated", whole)
    vlaunch("data", "split", whole, "--to", data, "--tokeniser", tokeniser, "--workers", 1)
    return data, tokeniser


def prose(folder: Path) -> tuple[Path, Path]:
    """The standard library's documentation, which Python carries itself."""
    from trainer.data.example import example_corpus

    names = {"user": "human", "assistant": "gpt"}
    data = folder / "prose.json"
    samples = [
        {
            "id": each.id,
            "conversations": [{"from": names[turn.role], "value": turn.text} for turn in each.turns],
        }
        for each in example_corpus()[0]
    ]
    data.write_text(json.dumps(samples))
    return data, train(folder / "prose", data)


def train(folder: Path, data: Path) -> Path:
    """A SentencePiece tokeniser as LLaMA's where FastChat's environment is there, else one of ours."""
    folder.mkdir()
    if theirs := os.environ.get("FASTCHAT_PYTHON"):
        program = TRAIN_TOKENISER.replace("vocab_size=32000", "vocab_size=32000, hard_vocab_limit=False")
        command = [theirs, "-c", program, str(data), str(folder)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        return folder
    from trainer.conversation import get_template
    from trainer.tokenize import train_tokeniser

    texts = (turn["value"] for sample in json.loads(data.read_text()) for turn in sample["conversations"])
    train_tokeniser(texts, 32_000, get_template("vicuna_v1.1")).save_pretrained(folder)
    return folder


def copies(data: Path, count: int, path: Path) -> None:
    """`count` conversations: the corpus again and again, each copy with words of its own."""
    samples = json.loads(data.read_text())
    with path.open("w") as out:
        for number in range(count):
            copy, at = divmod(number, len(samples))
            turns = [
                {**turn, "value": with_new_words(turn["value"], copy)}
                for turn in samples[at]["conversations"]
            ]
            print(json.dumps({"id": f"{number}", "conversations": turns}), file=out)


def with_new_words(text: str, copy: int) -> str:
    words = text.split(" ")
    for at in range(0, len(words), NEW_WORD_EVERY) if copy else ():
        words[at] += f"q{copy}"
    return " ".join(words)


# --- reports ----------------------------------------------------------------------------------


def compare_speed(name: str, data: Path, tokeniser: Path, repeat: int) -> dict[str, Any]:
    rates: dict[str, list[float]] = {}
    for _ in range(repeat):  # in turns, so that a disturbance meets all
        sides = {"vlaunch": apart("speed", data, tokeniser)}
        if "FASTCHAT_PYTHON" in os.environ:
            sides |= {
                f"fastchat, {kind}": fastchat(data, tokeniser, kind, SAMPLES) for kind in ("slow", "fast")
            }
        for side, told in sides.items():
            rates.setdefault(side, []).append(told["samples"] / told["cpu_s"])
    told = apart("speed", data, tokeniser)
    print(f"\n{name}: {told['samples']} conversations, mean {told['tokens'] / told['samples']:.0f} tokens")
    print(f"{'side':<16} {'conv/CPU s':>10} {'least-most':>11} {'vlaunch is':>11}")
    ours = statistics.median(rates["vlaunch"])
    for side, found in rates.items():
        spread = f"{min(found):.0f}-{max(found):.0f}"
        middle = statistics.median(found)
        print(f"{side:<16} {middle:>10.0f} {spread:>11} {ours / middle:>10.1f}x")
    return {side: {"median": statistics.median(found), "all": sorted(found)} for side, found in rates.items()}


def grow(data: Path, tokeniser: Path, sizes: list[int], folder: Path) -> dict[str, Any]:
    from tests.trainer.runs import create_run

    print(f"\n{'conversations':>13} {'conv/CPU s':>10} {'peak MB':>8} {'of it libraries':>15}", end="")
    print(f" {'second start: s':>16} {'CPU s':>6} {'files MB':>9} {'grown MB':>9}")
    figures = {}
    for size in sizes:
        corpus, run = folder / f"{size}.jsonl", str(folder / f"runs/{size}")
        copies(data, size, corpus)
        create_run(
            run,
            corpus,
            data__max_length=LIMIT,
            model__vocab_size=None,
            model__shape=None,
            model__base=str(tokeniser),
        )
        built = apart("build", run, folder / f"first-{size}")
        again = [apart("second", run, folder / f"second-{size}-{turn}") for turn in range(3)]
        start = {key: statistics.median(each[key] for each in again) for key in again[0]}
        figures[str(size)] = {"build": built, "second": start}
        print(
            f"{size:>13} {size / built['cpu_s']:>10.0f} {built['peak_mb']:>8.0f} {built['before_mb']:>15.0f} "
            f"{start['wall_s']:>16.2f} {start['cpu_s']:>6.2f} {start['mb']:>9.0f} {start['grown_mb']:>9.0f}",
            flush=True,
        )
    return figures


def masks(tokeniser: Path, folder: Path) -> dict[str, int]:
    """What FastChat would learn of conversations that tests/trainer/test_masks.py has ours learn exactly."""
    from tests.trainer.test_masks import answers, conversations
    from trainer.conversation import Conversation, get_template

    names = {"user": "human", "assistant": "gpt"}
    # Without system turns, which FastChat's roles do not know.
    said = [
        Conversation(each.id, tuple(turn for turn in each.turns if turn.role != "system"))
        for each in conversations()
    ]
    samples = [
        {
            "id": each.id,
            "conversations": [{"from": names[turn.role], "value": turn.text} for turn in each.turns],
        }
        for each in said
    ]
    path = folder / "masks.json"
    path.write_text(json.dumps(samples))
    template = get_template("vicuna_v1.1")
    # Of its text nothing but what lies at the edges is forgiven: decoders differ in the spaces there.
    wanted = [[text.strip() for text in answers(template, each)] for each in said]
    learnt = fastchat(path, tokeniser, "slow", len(samples))["learnt"]
    found = {"right": 0, "nothing learnt": 0, "something else learnt": 0}
    for texts, meant in zip(learnt, wanted, strict=True):
        right = [text.strip() for text in texts] == meant
        found["right" if right else "something else learnt" if texts else "nothing learnt"] += 1
    print(f"\nmasks: of {len(samples)} conversations with marks in their texts FastChat learns")
    for outcome, count in found.items():
        print(f"  {outcome:<22} {count:>5}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="*", default=[2_000, 20_000, 100_000])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.part:
        name, *words = wanted.part
        return print(json.dumps(PARTS[name](*words)))
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        corpora = {"prose": prose(folder)}
        if GENERATOR.exists():
            corpora["generated"] = generated(folder)
        for name, (data, tokeniser) in corpora.items():
            figures[name] = compare_speed(name, data, tokeniser, wanted.repeat)
        data, tokeniser = corpora.get("generated", corpora["prose"])
        figures["sizes"] = grow(data, tokeniser, wanted.sizes, folder)
        if "FASTCHAT_PYTHON" in os.environ:
            figures["masks"] = masks(tokeniser, folder)
    if wanted.json:
        wanted.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
