"""Cleaning beside FastChat 0.2.36's clean_sharegpt: conversations per CPU second, and what becomes of the text.

    FASTCHAT_PYTHON=/venv/bin/python python tests/benchmarks/clean.py [--n 2000 20000] [--repeat 3]
                                                                             [--fidelity 2000] [--json FILE]

FASTCHAT_PYTHON names a python that has fschat==0.2.36 (pip install --no-deps), bs4, markdownify==0.11.6 and
tqdm; without it only our side runs. Input: shared/tools/gen_sharegpt.py, seed 0 (VLAUNCH_SHARED names shared/).

Speed: whole processes, from the start of python to the written file, children included, user and system time; both
sides in turn, the least of the repeats. Ours reads the JSON at once with orjson and cleans with the filters that
are on by default; FastChat's also looks for duplicates, which here is a step of its own and costs it under 1 %.

Fidelity, over every message of the corpus, with tests/data/shown.py as the judge (the standard library's parser on
the page's HTML, and on the Markdown as markdown-it-py renders it):

    human messages changed     of those with a program in them, and of all
    code blocks changed        not byte for byte, but for one line end at the end
    backslashes added          answers whose Markdown has more backslashes in its text than the page shows; and how
                               many of them still show too many when rendered
    visible text               answers whose rendered Markdown shows what the page shows; the others by reason
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

SHARED = Path(os.environ.get("VLAUNCH_SHARED", REPOSITORY.parent / "shared"))
TARGET = 10.0

_CONVERT = """
import json, sys
from fastchat.data.clean_sharegpt import html_to_markdown
json.dump([html_to_markdown(text) for text in json.load(sys.stdin)], sys.stdout)
"""
# What is no part of an answer, as gen_sharegpt.py writes it: a page's counter, and what its copy button adds.
_NOT_ANSWER = re.compile(r'\A<div class="text-xs">\d+ / \d+</div>|<p>Copy\d+ chars / \d+ words</p>')
_PROGRAM = re.compile(r"\n.*[{};=()]")


def ours(source: str, target: str) -> None:
    """Our side of the speed comparison, in a process of its own."""
    import orjson

    from trainer.data.clean import Cleaned, clean

    samples = orjson.loads(Path(source).read_bytes())
    with open(target, "wb") as out:
        for number, sample in enumerate(samples, 1):
            cleaned = clean(sample, f"sample-{number}")
            if isinstance(cleaned, Cleaned):
                turns = [{"role": turn.role, "content": turn.text} for turn in cleaned.conversation.turns]
                out.write(orjson.dumps({"id": cleaned.conversation.id, "messages": turns}) + b"\n")


def cpu_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def speed(count: int, repeat: int, fastchat: str | None, folder: Path) -> dict[str, Any]:
    source = generated(count, folder)
    sides = {"ours": [sys.executable, __file__, "--ours", str(source), str(folder / "ours.jsonl")]}
    if fastchat:
        files = ["--in-file", str(source), "--out-file", str(folder / "fastchat.json")]
        sides["FastChat"] = [fastchat, "-m", "fastchat.data.clean_sharegpt", *files]
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeat):
        for name, command in sides.items():
            seconds[name].append(cpu_seconds(command))
    best = {name: min(taken) for name, taken in seconds.items()}
    row = {"conversations": count, "megabytes": source.stat().st_size / 1e6, "seconds": seconds}
    row["per_cpu_second"] = {name: count / taken for name, taken in best.items()}
    row["ratio"] = best["FastChat"] / best["ours"] if fastchat else None
    return row


def generated(count: int, folder: Path) -> Path:
    path = folder / f"sharegpt-{count}.json"
    if not path.exists():
        tool = SHARED / "tools/gen_sharegpt.py"
        command = [sys.executable, str(tool), "--n", str(count), "--seed", "0", "--out", str(path)]
        subprocess.run(command, check=True, capture_output=True)
    return path


def fidelity(count: int, fastchat: str | None, folder: Path) -> dict[str, dict[str, Any]]:
    from trainer.data.clean import Cleaned, clean, clean_settings
    from trainer.data.html import to_markdown

    samples = json.loads(generated(count, folder).read_text())
    turns = [turn for sample in samples for turn in sample["conversations"]]
    questions = [turn["value"] for turn in turns if turn["from"] == "human"]
    answers = [turn["value"] for turn in turns if turn["from"] == "gpt"]
    everything_off = clean_settings(off=["blocked phrases", "rate limited", "broken lists", "too short"])
    kept = []
    for question in questions:  # the whole way of a message, not the converter alone
        pair = [{"from": "human", "value": question}, {"from": "gpt", "value": "<p>yes</p>"}]
        cleaned = clean({"conversations": pair}, "x", everything_off)
        kept.append(cleaned.conversation.turns[0].text if isinstance(cleaned, Cleaned) else "")
    sides = {"ours": (kept, [to_markdown(answer) for answer in answers])}
    if fastchat:
        run = subprocess.run(
            [fastchat, "-c", _CONVERT],
            input=json.dumps(questions + answers),
            capture_output=True,
            text=True,
            check=True,
        )
        converted = json.loads(run.stdout)
        sides["FastChat"] = (converted[: len(questions)], converted[len(questions) :])
    return {name: counted(questions, answers, *texts) for name, texts in sides.items()}


def counted(questions: list[str], answers: list[str], kept: list[str], markdown: list[str]) -> dict[str, Any]:
    from tests.data.shown import render, shown_by

    programs = [
        (before, after) for before, after in zip(questions, kept, strict=True) if _PROGRAM.search(before)
    ]
    result: dict[str, Any] = {
        "human messages": len(questions),
        "human messages changed": sum(a != b for a, b in zip(questions, kept, strict=True)),
        "human messages with code": len(programs),
        "human messages with code changed": sum(a != b for a, b in programs),
        "answers": len(answers),
    }
    counts: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    examples: dict[str, str] = {}
    for page, text in zip(answers, markdown, strict=True):
        source, shown = shown_by(_NOT_ANSWER.sub("", page)), shown_by(render(text))
        counts["code blocks"] += len(source.code)
        same = sum(a == b for a, b in zip(source.code, shown.code, strict=False))
        counts["code blocks changed"] += len(source.code) - same
        blocks = sum(code.count("\\") for _, code in source.code)
        counts["answers with backslashes added"] += text.count("\\") > source.text.count("\\") + blocks
        counts["of these, still seen when rendered"] += shown.text.count("\\") > source.text.count("\\")
        if source.text != shown.text:
            reason = why(source.text, shown.text)
            reasons[reason] += 1
            examples.setdefault(reason, near(source.text, shown.text))
    different = sum(reasons.values())
    result |= {key: counts[key] for key in ("code blocks", "code blocks changed")}
    result |= {
        key: counts[key] for key in ("answers with backslashes added", "of these, still seen when rendered")
    }
    result["same visible text"] = 1 - different / len(answers)
    result["different by reason"] = dict(reasons.most_common())
    result["examples"] = examples
    return result


def why(source: str, shown: str) -> str:
    if source.replace("\ue001", "").split() == shown.replace("\ue001", "").split():
        return "code blocks stand elsewhere or are no blocks"
    if sorted(source) == sorted(shown):
        return "the order differs"
    if "".join(source.split()) == "".join(shown.split()):
        return "spaces differ"
    return "text lost" if len(shown) < len(source) else "text added"


def near(source: str, shown: str) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(source, shown, strict=False)) if a != b),
        min(len(source), len(shown)),
    )
    return f"{source[max(0, at - 20) : at + 30]!r} shows as {shown[max(0, at - 20) : at + 30]!r}"


def main() -> None:
    if sys.argv[1:2] == ["--ours"]:
        return ours(*sys.argv[2:4])
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, nargs="+", default=[2000])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--fidelity", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not SHARED.exists():
        return print(f"skipped: there is no {SHARED} with tools/gen_sharegpt.py; VLAUNCH_SHARED names it")
    fastchat = os.environ.get("FASTCHAT_PYTHON")
    if not fastchat:
        print("FastChat: skipped, FASTCHAT_PYTHON names no python that has it")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [speed(count, options.repeat, fastchat, folder) for count in options.n]
        for row in rows:
            sides = ", ".join(f"{side} {rate:,.0f}" for side, rate in row["per_cpu_second"].items())
            ratio = f": {row['ratio']:.1f} times (wanted: {TARGET:.0f})" if row["ratio"] else ""
            print(
                f"{row['conversations']:,} conversations, {row['megabytes']:.1f} MB, per CPU second: {sides}{ratio}"
            )
        found = fidelity(options.fidelity, fastchat, folder)
    for key in next(iter(found.values())):
        if key not in ("different by reason", "examples"):
            values = [
                f"{side[key]:>10.2%}" if key == "same visible text" else f"{side[key]:>10,}"
                for side in found.values()
            ]
            print(f"{key:40}" + "".join(values) + "   " + " ".join(found) * (key == "human messages"))
    for side, result in found.items():
        for reason, times in result["different by reason"].items():
            print(f"{side}: {times:,} x {reason}: {result['examples'][reason]}")
    if options.json:
        options.json.write_text(json.dumps({"speed": rows, "fidelity": found}, indent=1))


if __name__ == "__main__":
    main()
