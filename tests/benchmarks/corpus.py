"""The corpus pipeline against FastChat 0.2.36's scripts: same machine, same run, same input, CPU seconds.

    FASTCHAT_PYTHON=/path/to/python python -m tests.benchmarks.corpus --raw 2000.json --raw 20000.json

--raw: what gen_sharegpt.py writes. FastChat's environment needs fschat==0.2.36, transformers==4.46.3, sentencepiece,
beautifulsoup4, markdownify==0.11.6 and, for its language filter, polyglot, pycld2 and pyicu. Both sides count tokens
with one 32,000-token SentencePiece model, trained here on the corpus's own text.

Every line is a process of its own with its children's CPU time and the largest sum of resident memory seen (PSS where
the system gives it). Each is run `--repeat` times and the least is reported; the tools
alternate, so that a busy machine troubles both. "start" is what the same command takes for two samples: imports,
workers, tokeniser, models. "net" is the ratio without it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

WORKERS = 2
TRAIN_TOKENISER = """
import json, re, sys, html
import sentencepiece, transformers
raw, out = sys.argv[1:]
tag = re.compile("<[^>]+>")
def lines():
    for sample in json.load(open(raw)):
        for turn in sample["conversations"]:
            for line in html.unescape(tag.sub(" ", turn["value"])).split("\\n"):
                if line.strip():
                    yield line[:4000]
sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines(), model_prefix=out + "/spm", vocab_size=32000,
    model_type="bpe", byte_fallback=True, character_coverage=0.9995, normalization_rule_name="identity",
    remove_extra_whitespaces=False, split_digits=True, num_threads=2, minloglevel=2)
slow = transformers.LlamaTokenizer(out + "/spm.model")
slow.save_pretrained(out)
fast = transformers.convert_slow_tokenizer.convert_slow_tokenizer(slow)
fast.save(out + "/tokenizer.json")
"""


@dataclass(frozen=True)
class Cost:
    """Of one process with its children."""

    cpu_s: float
    wall_s: float
    peak_mb: float


def measure(command: list[str]) -> Cost:
    """Runs it; raises if it fails. CPU is exact (wait4 of a child counts its own waited-for children)."""
    began = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = 0
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, memory(child.pid))

    watcher = threading.Thread(target=sample, daemon=True)
    watcher.start()
    assert child.stderr is not None
    said = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    done.set()
    watcher.join()
    if status:
        raise RuntimeError(f"{command} failed: {said.decode()[-2000:]}")
    return Cost(usage.ru_utime + usage.ru_stime, time.monotonic() - began, peak / 1e6)


def memory(pid: int) -> int:
    total = 0
    try:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            total += process.memory_full_info().pss
    except (psutil.Error, OSError):
        return 0
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", type=Path, action="append", required=True)
    parser.add_argument("--work", type=Path, default=Path("/tmp/corpus-benchmark"))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--ours-only", action="store_true")
    asked = parser.parse_args()
    theirs = os.environ.get("FASTCHAT_PYTHON", "")
    asked.work.mkdir(parents=True, exist_ok=True)
    tokeniser = asked.work / "tokeniser"
    if not (tokeniser / "tokenizer.json").exists():
        tokeniser.mkdir(exist_ok=True)
        subprocess.run([theirs, "-c", TRAIN_TOKENISER, str(asked.raw[0]), str(tokeniser)], check=True)
    peaks = []
    for raw in asked.raw:
        count = len(json.loads(raw.read_bytes()))
        folder = asked.work / raw.stem
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        peaks.append(compare(raw, count, folder, tokeniser, theirs, asked))
    if len(peaks) > 1:
        print(f"\nprepare's peak memory: {peaks} MB, ratio {peaks[-1] / peaks[0]:.2f}", flush=True)


def compare(
    raw: Path, count: int, folder: Path, tokeniser: Path, theirs: str, asked: argparse.Namespace
) -> float:
    fastchat = chain(theirs, raw, folder, tokeniser)
    # The steps alone get the very files that FastChat's steps get.
    ours = own_steps(raw, folder, tokeniser)
    costs: dict[str, list[Cost]] = {}
    for _ in range(asked.repeat):
        for name, command in ({} if asked.ours_only else fastchat).items():
            costs.setdefault(f"fastchat {name}", []).append(measure(command))
        for name, command in ours.items():
            for path in folder.glob("ours-*"):
                if path.name == "ours-split.jsonl":
                    path.replace(folder / "kept-split.jsonl")
                    continue
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            costs.setdefault(f"vlaunch {name}", []).append(measure(command))
    sizes = {name: len(json.loads(path.read_bytes())) for name, path in inputs(raw, folder).items()}
    report(costs, starts(raw, folder, tokeniser, theirs, asked), sizes, count)
    for name, path in {"fastchat": folder / "s.json", "vlaunch": folder / "kept-split.jsonl"}.items():
        before, after = rounds(folder / "l.json"), rounds(path)
        print(f"{name} split: {before:,} rounds in, {after:,} out, {before - after:,} lost", flush=True)
    return max(cost.peak_mb for cost in costs["vlaunch prepare"])


def starts(
    raw: Path, folder: Path, tokeniser: Path, theirs: str, asked: argparse.Namespace
) -> dict[str, float]:
    """CPU seconds of each command for two samples of its input: what does not grow."""
    tiny = folder / "tiny"
    for path in inputs(raw, folder).values():
        tiny.mkdir(exist_ok=True)
        (tiny / path.name).write_text(json.dumps(json.loads(path.read_bytes())[:2]))
    small = tiny / raw.name
    tools = {"vlaunch": own_steps(small, tiny, tokeniser)}
    if not asked.ours_only:
        tools["fastchat"] = chain(theirs, small, tiny, tokeniser)
    found: dict[str, float] = {}
    for tool, steps in tools.items():
        for name, command in steps.items():
            runs = []
            for _ in range(asked.repeat):
                for path in tiny.glob("ours-*"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                runs.append(measure(command).cpu_s)
            found[f"{tool} {name}"] = min(runs)
    return found


def rounds(path: Path) -> int:
    """Answers that are in a file."""
    from trainer.data.json_stream import read_lines

    samples = (
        json.loads(path.read_bytes())
        if path.suffix == ".json"
        else [sample.value for sample in read_lines(path, iter([path.read_bytes()]))]
    )
    return sum(turn["from"] == "gpt" for sample in samples for turn in sample["conversations"])


def inputs(raw: Path, folder: Path) -> dict[str, Path]:
    """What each step reads: for FastChat, the output of the step before."""
    return {
        "clean": raw,
        "language": folder / "c.json",
        "split": folder / "l.json",
        "filter": folder / "s.json",
    }


def chain(python: str, raw: Path, folder: Path, tokeniser: Path) -> dict[str, list[str]]:
    files = inputs(raw, folder)
    last = folder / "f.json"

    def step(module: str, *words: object) -> list[str]:
        return [python, "-m", f"fastchat.data.{module}", *map(str, words)]

    return {
        "clean": step("clean_sharegpt", "--in", files["clean"], "--out", files["language"]),
        "language": step("optional_clean", "--in", files["language"], "--out", files["split"], "--skip-lang", "ko"),
        "split": step(
            "split_long_conversation", "--in", files["split"], "--out", files["filter"], "--model-name", tokeniser,
            "--max-length", 2048,
        ),
        "filter": step("filter_wrong_format", "--in", files["filter"], "--out", last),
    }  # fmt: skip


def own_steps(raw: Path, folder: Path, tokeniser: Path) -> dict[str, list[str]]:
    files = inputs(raw, folder)

    def step(name: str, path: Path, *words: object) -> list[str]:
        out = folder / f"ours-{name}.jsonl"
        common = ["data", name, path, "--to", out, "--workers", WORKERS]
        return [sys.executable, "-m", "launcher", *map(str, common), *map(str, words)]

    # The rule that FastChat's filter has, and no other.
    others = [word for name in filters() if name != "broken lists" for word in ("--off", name)]
    return {
        "clean": step("clean", files["clean"]),
        "language": step("filter", files["language"], *others, "--off", "broken lists", "--skip", "ko"),
        "split": step("split", files["split"], "--tokeniser", tokeniser),
        "filter": step("filter", files["filter"], *others),
        "prepare": step("prepare", raw, "--tokeniser", tokeniser, "--skip", "ko"),
    }


def filters() -> list[str]:
    from trainer.data.filters import FILTERS

    return list(FILTERS)


def report(costs: dict[str, list[Cost]], start: dict[str, float], sizes: dict[str, int], count: int) -> None:
    runs = len(next(iter(costs.values())))
    print(f"\n{count:,} conversations, the least of {runs}", flush=True)
    titles = ("conv in", "CPU s", "start", "wall s", "conv/CPU-s", "peak MB", "ratio", "net")
    print(f"{'step':<20}" + "".join(f"{title:>11}" for title in titles))
    least = {name: min(cost.cpu_s for cost in each) for name, each in costs.items()}
    rivals = {name: seconds for name, seconds in least.items() if name.startswith("fastchat ")}
    for name, each in costs.items():
        step = name.split()[1]
        size, cpu = sizes.get(step, count), least[name]
        rival = [other for other in rivals if step == "prepare" or other == f"fastchat {step}"]
        ratio = net = ""
        if rival and name.startswith("vlaunch"):
            ratio = f"{sum(rivals[other] for other in rival) / cpu:.1f}"
            net = f"{sum(rivals[other] - start[other] for other in rival) / (cpu - start[name]):.1f}"
        wall = min(cost.wall_s for cost in each)
        peak = max(cost.peak_mb for cost in each)
        print(
            f"{name:<20}{size:>11,}{cpu:>11.2f}{start[name]:>11.2f}{wall:>11.2f}{size / cpu:>11,.0f}"
            f"{peak:>11.0f}{ratio:>11}{net:>11}",
            flush=True,
        )
    if rivals:
        whole = sum(rivals.values())
        print(f"{'fastchat, all four':<20}{count:>11,}{whole:>11.2f}{'':>22}{count / whole:>11,.0f}")


if __name__ == "__main__":
    main()
