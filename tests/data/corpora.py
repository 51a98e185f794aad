"""Raw corpora as people have them: HTML answers, several languages, duplicates, doubled and missing ids, defects."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

WORDS = "the model reads a line of code and returns every value that was asked for in the first place".split()
SPANISH = (
    "el modelo lee una línea de código y devuelve todos los valores que se pidieron al principio".split()
)


def sentence(dice: random.Random, words: list[str], length: int) -> str:
    return " ".join(dice.choices(words, k=length)).capitalize() + "."


def answer(dice: random.Random, words: list[str]) -> str:
    text = "".join(f"<p>{sentence(dice, words, dice.randint(5, 40))}</p>" for _ in range(dice.randint(1, 6)))
    if dice.random() < 0.3:
        text += '<pre><code class="language-python">if a &lt; b:\n    print(a)\n\n\nelse:\n    pass\n</code></pre>'
    return f'<div class="markdown prose">{text}</div>' if dice.random() < 0.8 else sentence(dice, words, 30)


def sample(dice: random.Random, number: int) -> dict[str, Any]:
    words = SPANISH if dice.random() < 0.2 else WORDS
    turns = []
    for _ in range(dice.randint(1, 8)):
        turns.append(
            {"from": "human", "value": sentence(dice, words, dice.randint(3, 30)) + f"\n    x = {number}"}
        )
        turns.append({"from": "gpt", "value": answer(dice, words)})
    made: dict[str, Any] = {"id": f"c{number}", "conversations": turns}
    lot = dice.random()
    if lot < 0.03:
        turns.append({"from": "human", "value": "And then?"})
    elif lot < 0.05:
        turns[-1]["from"] = "robot"
    elif lot < 0.07:
        turns[0]["value"] = 7
    elif lot < 0.10:
        del made["id"]
    return made


def raw_samples(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """With 3 % exact duplicates under the same id, 3 % beginnings of others, 3 % of other text under a known id."""
    dice = random.Random(seed)
    made = [sample(dice, number) for number in range(count)]
    for number in range(1, count):
        lot = dice.random()
        earlier = made[dice.randrange(number)]
        if lot < 0.03:
            made[number] = earlier
        elif lot < 0.06:
            made[number] = {"id": f"again{number}", "conversations": earlier["conversations"][:4]}
        elif lot < 0.09 and "id" in earlier:
            made[number] = {**made[number], "id": earlier["id"]}
    return made


def write_json(path: Path, samples: list[Any]) -> Path:
    path.write_text(json.dumps(samples, ensure_ascii=False), encoding="utf-8")
    return path


def write_lines(path: Path, samples: list[Any]) -> Path:
    data = b"".join(json.dumps(sample).encode() + b"\n" for sample in samples)
    if path.suffix == ".zst":
        data = zstandard.compress(data)
    elif path.suffix == ".gz":
        data = gzip.compress(data)
    path.write_bytes(data)
    return path


def write_parquet(path: Path, samples: list[Any]) -> Path:
    turns = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))
    schema = pa.schema([("id", pa.string()), ("conversations", turns)])
    pq.write_table(pa.Table.from_pylist(samples, schema), path, row_group_size=100)
    return path


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
