"""Reading a corpus: every form, container and compression, and an account of every sample."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.conversation import Conversation, Turn
from trainer.data.read import canonical_line, read_corpus
from trainer.errors import DataError

SHAREGPT = {
    "id": "a",
    "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
}
OPENAI = {
    "id": "b",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "1 + "}, {"type": "text", "text": "1?"}]},
        {"role": "assistant", "content": "2"},
    ],
}
ALPACA = {"instruction": "Translate.", "input": "chat", "output": "cat"}
SAMPLES = [SHAREGPT, OPENAI, ALPACA]
READ = [
    Conversation("a", (Turn("user", "Hi"), Turn("assistant", "Hello"))),
    Conversation("b", (Turn("system", "Be brief."), Turn("user", "1 + 1?"), Turn("assistant", "2"))),
    Conversation("mixed-3", (Turn("user", "Translate.\n\nchat"), Turn("assistant", "cat"))),
]


def jsonl(samples: list[Any]) -> str:
    return "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)


def turns(*roles_and_texts: str) -> list[dict[str, str]]:
    pairs = zip(roles_and_texts[::2], roles_and_texts[1::2], strict=True)
    return [{"from": role, "value": text} for role, text in pairs]


def read_one(folder: Path, *samples: Any) -> tuple[list[Conversation], dict[str, int]]:
    """The samples as one file: (conversations, refused by reason). One good sample is added, last."""
    path = folder / "one.jsonl"
    path.write_text(jsonl([*samples, SHAREGPT]), encoding="utf-8")
    corpus = read_corpus([path])
    return list(corpus)[:-1], corpus.files[0].refused


# --- forms, containers, compression -----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "container"),
    [
        (json.dumps(SAMPLES), "json"),
        (json.dumps(SAMPLES, indent=2, ensure_ascii=False), "json"),
        (jsonl(SAMPLES), "jsonl"),
        (jsonl(SAMPLES).replace("\n", "\r\n\r\n"), "jsonl"),
        (jsonl(SAMPLES).rstrip("\n"), "jsonl"),
        ("\n".join(json.dumps(sample, indent=1) for sample in SAMPLES), "json"),
    ],
    ids=[
        "array",
        "pretty array",
        "lines",
        "windows lines and blank ones",
        "no last line end",
        "pretty objects",
    ],
)
@pytest.mark.parametrize("bom", ["", "\ufeff"], ids=["", "with a byte order mark"])
def test_every_json_layout_is_read_and_named(tmp_path: Path, text: str, container: str, bom: str) -> None:
    path = tmp_path / "mixed"  # the name says nothing, the content does
    path.write_text(bom + text, encoding="utf-8", newline="")
    corpus = read_corpus([path])
    assert list(corpus) == READ
    assert corpus.files[0].container == container
    assert corpus.files[0].forms == {"sharegpt": 1, "openai": 1, "alpaca": 1}


@pytest.mark.parametrize("form", [SHAREGPT, OPENAI, ALPACA], ids=["sharegpt", "openai", "alpaca"])
def test_a_single_object_is_a_corpus_of_one(tmp_path: Path, form: dict[str, Any]) -> None:
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps(form, indent=2))
    assert len(list(read_corpus([path]))) == 1


@pytest.mark.parametrize("container", ["json", "jsonl"])
def test_gzip_and_zstd_are_seen_by_their_first_bytes(tmp_path: Path, container: str) -> None:
    data = (json.dumps(SAMPLES) if container == "json" else jsonl(SAMPLES)).encode()
    gz, zst = tmp_path / "mixed.json.gz", tmp_path / "mixed.data"
    gz.write_bytes(gzip.compress(data[:40]) + gzip.compress(data[40:]))  # several members, as `cat a.gz b.gz`
    zst.write_bytes(zstandard.compress(data[:40]) + zstandard.compress(data[40:]))
    for path, compression in ((gz, "gzip"), (zst, "zstd")):
        corpus = read_corpus([path])
        assert [conversation.turns for conversation in corpus] == [sample.turns for sample in READ]
        assert corpus.files[0].format == f"alpaca+openai+sharegpt {container} {compression}"


def test_parquet_is_read_column_by_column_with_the_nulls_of_a_mixed_table(tmp_path: Path) -> None:
    path = tmp_path / "mixed.parquet"
    rows = [{key: sample.get(key) for key in ("id", "conversations")} for sample in (SHAREGPT, SHAREGPT)]
    table = pa.table(
        {
            "id": [row["id"] for row in rows] + [None],
            "conversations": [row["conversations"] for row in rows] + [None],
            "instruction": [None, None, "Translate."],
            "input": [None, None, "chat"],
            "output": [None, None, "cat"],
            "embedding": [[0.5] * 100] * 3,  # not ours: not even read
        }
    )
    pq.write_table(table, path)
    corpus = read_corpus([path])
    assert list(corpus) == [READ[0], READ[0], READ[2]]
    assert corpus.files[0].format == "alpaca+sharegpt parquet"


def test_role_and_content_are_read_under_conversations_too(tmp_path: Path) -> None:
    sample = {"conversations": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    assert read_one(tmp_path, sample)[0][0].turns == READ[0].turns


@pytest.mark.parametrize("role", ["gpt", "chatgpt", "assistant", "bing", "bard", "GPT "])
def test_every_name_of_an_assistant_is_known(tmp_path: Path, role: str) -> None:
    conversations, _ = read_one(tmp_path, {"conversations": turns("human", "Hi", role, "Hello")})
    assert conversations[0].turns == READ[0].turns


def test_text_comes_through_untouched(tmp_path: Path) -> None:
    text = "  def f():\n\treturn '</s> USER: \\u2028\u2028\u0000'\r\n\n\n👩‍👩‍👧 日本語  "
    conversations, _ = read_one(tmp_path, {"conversations": turns("human", text, "gpt", text)})
    assert conversations[0].turns == (Turn("user", text), Turn("assistant", text))


# --- ids ---------------------------------------------------------------------------------------


def test_a_missing_id_is_made_of_the_file_name_and_the_sample_number(tmp_path: Path) -> None:
    path = tmp_path / "my.corpus.jsonl.gz"
    nameless = {"conversations": SHAREGPT["conversations"]}
    path.write_bytes(gzip.compress(jsonl([SHAREGPT, nameless, {**nameless, "id": None}]).encode()))
    assert [conversation.id for conversation in read_corpus([path])] == ["a", "my.corpus-2", "my.corpus-3"]


def test_ids_may_be_numbers_and_need_not_differ(tmp_path: Path) -> None:
    conversations, _ = read_one(tmp_path, {**SHAREGPT, "id": 7}, {**SHAREGPT, "id": 7})
    assert [conversation.id for conversation in conversations] == ["7", "7"]


# --- refusals ----------------------------------------------------------------------------------

BAD = [
    ("not an object", ["a", "b"]),
    ("not an object", None),
    ("unknown format", {"text": "just text"}),
    ("bad turns", {"conversations": "human: hi"}),
    ("bad turns", {"conversations": ["hi", "hello"]}),
    ("bad turns", {"conversations": [{"value": "hi"}]}),
    ("unknown role", {"conversations": turns("human", "a", "tool", "b", "gpt", "c")}),
    ("not text", {"conversations": [{"from": "human", "value": 3}, {"from": "gpt", "value": "x"}]}),
    ("not text", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
    ("not text", {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": None}]}),
    ("not text", {"instruction": "a"}),
    ("broken characters", {"conversations": turns("human", "half \ud83d", "gpt", "b")}),
    ("wrong role order", {"conversations": turns("gpt", "a", "human", "b", "gpt", "c")}),
    ("wrong role order", {"conversations": turns("human", "a", "human", "b", "gpt", "c")}),
    ("wrong role order", {"conversations": turns("human", "a", "gpt", "b", "system", "c")}),
    ("wrong role order", {"conversations": turns("system", "a", "system", "b", "human", "c", "gpt", "d")}),
    ("no answer", {"conversations": []}),
    ("no answer", {"conversations": turns("human", "a")}),
    ("no answer", {"conversations": turns("system", "a")}),
    ("empty text", {"conversations": turns("human", "a", "gpt", " \n")}),
    ("empty text", {"instruction": " ", "output": "b"}),
    ("empty text", {"instruction": "a", "output": ""}),
]


@pytest.mark.parametrize(
    ("reason", "sample"), BAD, ids=[f"{i}-{reason}" for i, (reason, _) in enumerate(BAD)]
)
def test_a_bad_sample_is_refused_by_itself_and_counted(tmp_path: Path, reason: str, sample: Any) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(SHAREGPT) + "\n" + json.dumps(sample) + "\n" + json.dumps(sample) + "\n")
    corpus = read_corpus([path])
    assert [conversation.id for conversation in corpus] == ["a"]
    report = corpus.files[0]
    assert report.refused == {reason: 2}
    assert report.first_refusal[reason].startswith("line 2: ")
    assert (report.samples, report.conversations) == (3, 1)


def test_a_last_question_without_an_answer_is_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(
        json.dumps([{"id": "a", "conversations": turns("human", "Hi", "gpt", "Hello", "human", "?")}])
    )
    corpus = read_corpus([path])
    assert list(corpus) == [READ[0]]
    assert corpus.files[0].trimmed == 1


def test_a_corpus_of_refused_samples_is_an_error_that_counts_them_per_file(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text(jsonl([{"conversations": turns("human", "a")}, {"x": 1}, {"x": 2}]))
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "nothing").write_bytes(b"")
    with pytest.raises(DataError, match="no usable conversation") as caught:
        list(read_corpus([tmp_path / name for name in ("bad.jsonl", "empty.json", "nothing")]))
    lines = caught.value.message.splitlines()
    assert "bad.jsonl: 3 sample(s), all refused" in lines[1]
    assert "2 x unknown format, first at line 2: found x" in lines[2]
    assert "1 x no answer, first at line 1" in lines[3]
    assert lines[4].endswith("empty.json: empty") and lines[5].endswith("nothing: empty")
    assert caught.value.exit_code == 2 and caught.value.hint


def test_an_empty_file_beside_a_good_one_is_only_reported(tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text(json.dumps(SHAREGPT))
    (tmp_path / "empty.json").write_text("\n \n")
    corpus = read_corpus([tmp_path / "empty.json", tmp_path / "good.json"])
    assert len(list(corpus)) == 1
    assert [(report.container, report.samples) for report in corpus.files] == [("empty", 0), ("jsonl", 1)]


def test_reading_twice_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "good.json"
    path.write_text(json.dumps(SAMPLES))
    corpus = read_corpus([path])
    assert list(corpus) == list(corpus)
    assert corpus.files[0].conversations == 3


def test_files_are_read_in_the_order_given(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(json.dumps({**SHAREGPT, "id": name}))
    assert [c.id for c in read_corpus([tmp_path / "b", tmp_path / "a"])] == ["b", "a"]


# --- the canonical line --------------------------------------------------------------------------

TURNS = st.lists(st.tuples(st.text(), st.text().filter(str.strip)), min_size=1, max_size=3).map(
    lambda pairs: tuple(turn for u, a in pairs for turn in (Turn("user", u), Turn("assistant", a)))
)


@settings(deadline=None)
@given(first=TURNS, second=TURNS)
def test_canonical_lines_are_equal_exactly_when_the_turns_are(
    first: tuple[Turn, ...], second: tuple[Turn, ...]
) -> None:
    lines = [canonical_line(Conversation(name, turns)) for name, turns in (("a", first), ("b", second))]
    assert (lines[0] == lines[1]) == (first == second)
    assert lines[0].count(b"\n") == 1 and lines[0].endswith(b"\n")


def test_canonical_lines_are_a_corpus_themselves_and_do_not_change(tmp_path: Path) -> None:
    path = tmp_path / "canonical.jsonl"
    path.write_bytes(b"".join(map(canonical_line, READ)))
    assert [conversation.turns for conversation in read_corpus([path])] == [c.turns for c in READ]
    # Caches on the box are keyed by these bytes: changing them throws every cache away.
    expected = b'{"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello"}]}\n'
    assert canonical_line(READ[0]) == expected
