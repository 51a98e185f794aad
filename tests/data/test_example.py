"""The example corpus: real prose, the same every time, with nothing held out that is trained on."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.conversation import TEMPLATES, Conversation
from trainer.data.example import example_corpus, write_example
from trainer.data.read import read_corpus
from trainer.data.stdlib_docs import MODULES, clean_prose

PROGRAM = """
import sys
before = (list(sys.path), sys.getrecursionlimit(), sys.stdout, sys.excepthook)
from trainer.data.example import write_example
write_example(sys.argv[1])
assert before == (list(sys.path), sys.getrecursionlimit(), sys.stdout, sys.excepthook)
"""


@pytest.fixture(scope="module")
def corpus() -> tuple[list[Conversation], list[Conversation]]:
    return example_corpus()


def answers(conversations: list[Conversation]) -> list[str]:
    return [
        turn.text for conversation in conversations for turn in conversation.turns if turn.role == "assistant"
    ]


def test_there_are_thousands_of_conversations_of_one_to_three_rounds(
    corpus: tuple[list[Conversation], list[Conversation]],
) -> None:
    train, heldout = corpus
    assert 4000 <= len(train) + len(heldout) <= 8000
    assert {len(conversation.turns) for conversation in train} == {2, 4, 6}
    words = [len(text.split()) for text in answers(train)]
    assert 60 <= sum(words) / len(words) <= 200
    assert max(words) < 400


def test_five_percent_are_held_out(corpus: tuple[list[Conversation], list[Conversation]]) -> None:
    train, heldout = corpus
    assert 0.045 <= len(heldout) / (len(train) + len(heldout)) <= 0.06


def test_nothing_held_out_is_spoken_of_in_the_training_part(
    corpus: tuple[list[Conversation], list[Conversation]],
) -> None:
    train, heldout = corpus

    def subjects(conversations: list[Conversation]) -> set[str]:
        return {conversation.id.rpartition("-")[0] for conversation in conversations}

    def paragraphs(conversations: list[Conversation]) -> set[str]:
        # Without the name it begins with: "os.path.join is a function of the module os.path. Join ..."
        texts = (text for answer in answers(conversations) for text in answer.split("\n\n"))
        plain = (re.sub(r"^\S+ is an? .*? \S+\. ", "", text) for text in texts)
        return {text for text in plain if len(text.split()) >= 12 and not text.startswith("You call it")}

    assert not subjects(train) & subjects(heldout)
    assert len(paragraphs(heldout)) > 200
    assert not paragraphs(train) & paragraphs(heldout)


def test_ids_are_unique(corpus: tuple[list[Conversation], list[Conversation]]) -> None:
    ids = [conversation.id for part in corpus for conversation in part]
    assert len(ids) == len(set(ids))


def test_the_common_question_is_what_a_thing_does(
    corpus: tuple[list[Conversation], list[Conversation]],
) -> None:
    opening = [conversation.turns[0].text for conversation in corpus[0]]
    plain = [text for text in opening if re.match(r"What does the (function|method) \S+ do\?$", text)]
    assert len(plain) > 0.35 * len(opening)


def test_the_text_is_prose_without_addresses_paths_and_examples(
    corpus: tuple[list[Conversation], list[Conversation]],
) -> None:
    text = "\n".join(answers([*corpus[0], *corpus[1]]))
    assert not re.search(r" at 0x[0-9a-f]{6,}", text)
    assert sys.prefix not in text and str(Path.home()) not in text
    assert ">>>" not in text and "::=" not in text and "\t" not in text
    letters = sum(character.isalpha() or character in " .,\n" for character in text)
    assert letters > 0.93 * len(text)


def test_every_conversation_can_be_trained_on(corpus: tuple[list[Conversation], list[Conversation]]) -> None:
    for conversation in [*corpus[0], *corpus[1]]:
        assert any(segment.trained for segment in TEMPLATES["vicuna_v1.1"].render(conversation))


def test_two_processes_write_the_same_bytes_and_nothing_else(tmp_path: Path) -> None:
    digests = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        environment = {**os.environ, "PYTHONHASHSEED": seed, "LANG": "C" if seed == "1" else "C.UTF-8"}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", PROGRAM, str(folder)],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert sorted(path.name for path in folder.iterdir()) == ["heldout.jsonl", "train.jsonl"]
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())])
    assert digests[0] == digests[1]


def test_what_is_written_is_what_was_made(
    tmp_path: Path, corpus: tuple[list[Conversation], list[Conversation]]
) -> None:
    paths = write_example(tmp_path / "new" / "folder")
    for path, conversations in zip(paths, corpus, strict=True):
        read = read_corpus([path])
        assert list(read) == conversations
        assert read.files[0].format == "sharegpt jsonl" and read.files[0].refused == {}
        assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    train, heldout = write_example(tmp_path)
    train.write_text("old")
    heldout.unlink()
    heldout.mkdir()  # cannot be replaced by a file
    with pytest.raises(OSError):
        write_example(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heldout.jsonl", "train.jsonl"]


def test_a_python_without_docstrings_is_refused_with_what_to_do(tmp_path: Path) -> None:
    code = "from trainer.data.example import example_corpus; example_corpus()"
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "NotReady: this Python has no documentation" in done.stderr


def test_modules_that_print_open_windows_or_change_the_terminal_are_not_imported() -> None:
    noisy = {"antigravity", "this", "idlelib", "turtle", "turtledemo", "tkinter", "readline", "rlcompleter"}
    assert not {name.split(".")[0] for name in MODULES} & (noisy | {"site", "distutils", "lib2to3", "test"})
    assert len(MODULES) == len(set(MODULES))


@pytest.mark.parametrize(
    ("doc", "prose"),
    [
        (None, ()),
        ("Return it.\n\n    >>> f()\n    1\n", ()),
        ("join(a, b) -> str\n\nJoin ``a`` and *b*.", ("Join a and b.",)),
        ("D.pop(k) -> v, remove the key and return the value", ("Remove the key and return the value.",)),
        ("partial(f) - new function with arguments\napplied.", ("New function with arguments applied.",)),
        ("One line\nand another; see :class:`~a.B`.", ("One line and another; see a.B.",)),
        ("Use it so::\n\n    x = f(1)\n    y = 2\n\nThen go on.", ("Then go on.",)),
        (
            "Do all of these things so:\n\n>>> f()\n\nThen stop it.",
            ("Do all of these things so.", "Then stop it."),
        ),
        (
            "Kinds of it:\n\n* the first kind\n* the second kind\n",
            ("Kinds of it:", "The first kind.", "The second kind."),
        ),
    ],
)
def test_a_docstring_becomes_prose(doc: str | None, prose: tuple[str, ...]) -> None:
    assert clean_prose(doc) == prose
