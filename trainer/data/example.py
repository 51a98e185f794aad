"""A real corpus without a network: questions and answers about Python's own documentation.

    train, heldout = example_corpus()
    write_example(Path("example"))     # train.jsonl and heldout.jsonl, as ShareGPT

It is what `vlaunch train` uses when no corpus is given: thousands of conversations of real prose,
uniform enough that a model of a few million parameters writes recognisable documentation after
minutes. About 5 s of CPU at most. For one Python version it comes out the same, byte by byte:
every choice is made by a SHA-256 of a name. Nothing held out is spoken of in the training part;
things that share a paragraph (str.strip and bytes.strip) stand on the same side.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from trainer.conversation import ASSISTANT, USER, Conversation, Turn
from trainer.data.stdlib_docs import Entry, stdlib_entries
from trainer.errors import NotReady

HELDOUT_SHARE = 0.05  # of the conversations, reached within one unit
_MOST_WORDS = 180  # of one piece of documentation in an answer
_SUMMARY_WORDS = 50  # of a related thing
_MOST_TURNS = 3  # answers in one conversation
_SHARED_WORDS = 8  # a paragraph this long in two places is the same text, a shorter one chance

# The first form of each list is the common one: half of the conversations use it.
_QUESTIONS = {
    "function": (
        "What does the function {name} do?",
        "How do I use the function {name}?",
        "Explain the function {name}, please.",
        "What is {name} for?",
    ),
    "method": (
        "What does the method {name} do?",
        "How do I use the method {name}?",
        "Explain the method {name}, please.",
        "What is {name} for?",
    ),
    "class": (
        "What is the class {name}?",
        "What is the class {name} for?",
        "Explain the class {name}, please.",
        "When do I need {name}?",
    ),
    "property": (
        "What is the attribute {name}?",
        "What does the attribute {name} hold?",
        "Explain the attribute {name}, please.",
        "What is {name} for?",
    ),
    "module": (
        "What is the module {name}?",
        "What is the module {name} for?",
        "Explain the module {name}, please.",
        "When do I need the module {name}?",
    ),
    "topic": (
        "What does the Python reference say about: {name}?",
        "How does this work in Python: {name}?",
        "Explain this part of Python, please: {name}.",
        "What should I know about this in Python: {name}?",
    ),
}
_MORE = ("Please go on.", "Tell me more about it.", "What else should I know?", "Is there more to it?")
_CALL = ("How do I call it?", "What arguments does it take?", "Show me how it is called, please.")
_RELATED = ("What is related to it?", "What else is there nearby?", "What should I look at next?")
_MEMBERS = ("What does it offer?", "What is in it?", "Which parts does it have?")


def example_corpus() -> tuple[list[Conversation], list[Conversation]]:
    """(training part, held-out part). Raises NotReady if this Python carries no docstrings."""
    units = _units(stdlib_entries())
    # -OO drops the docstrings of Python's own modules, and some small builds of Python have none at all.
    if sys.flags.optimize > 1 or len(units) < 100:
        raise NotReady(
            "this Python has no documentation to build the example corpus from",
            hint="run without -OO and PYTHONOPTIMIZE=2, or give a corpus of your own: --data FILE",
        )
    heldout = _choose_heldout(units)
    sides: tuple[list[Entry], list[Entry]] = ([], [])
    for unit, entries in units.items():
        sides[unit in heldout].extend(entries)
    return list(_conversations(sides[0])), list(_conversations(sides[1]))


def write_example(directory: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Writes train.jsonl and heldout.jsonl as ShareGPT, each whole or not at all; returns their paths."""
    return save_corpus(directory, *example_corpus())


def save_corpus(
    directory: str | os.PathLike[str], train: list[Conversation], heldout: list[Conversation]
) -> tuple[Path, Path]:
    """The writing half of `write_example`."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.jsonl", folder / "heldout.jsonl"
    _write(paths[0], train)
    _write(paths[1], heldout)
    return paths


# --- which side -------------------------------------------------------------------------------


def _units(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Entries by unit; units with a paragraph in common are one."""
    home: dict[str, str] = {}

    def root(name: str) -> str:
        while home.setdefault(name, name) != name:
            name = home[name]
        return name

    first: dict[str, str] = {}
    entries = list(entries)
    for entry in entries:
        for text in entry.paragraphs:
            if len(text.split()) >= _SHARED_WORDS:
                home[root(entry.unit)] = root(first.setdefault(text, entry.unit))
    units: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        units[root(entry.unit)].append(entry)
    return dict(units)


def _choose_heldout(units: dict[str, list[Entry]]) -> set[str]:
    wanted = HELDOUT_SHARE * sum(map(len, units.values()))
    chosen: set[str] = set()
    held = 0
    for unit in sorted(units, key=_digest):
        # A unit that is a fifth of the held-out part alone would make it about that one thing.
        if held < wanted and len(units[unit]) <= wanted / 5:
            chosen.add(unit)
            held += len(units[unit])
    return chosen


# --- questions and answers --------------------------------------------------------------------


def _conversations(entries: list[Entry]) -> Iterator[Conversation]:
    members: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.kind != "module":
            members[entry.parent].append(entry)
    parts: dict[str, int] = defaultdict(int)
    for entry in entries:
        pairs = _pairs(entry, members)
        slug = f"python-{entry.kind}-" + re.sub(r"[^\w.]+", "-", entry.name).strip("-")
        for start in range(0, len(pairs), _MOST_TURNS):
            turns = []
            for question, answer in pairs[start : start + _MOST_TURNS]:
                turns += [Turn(USER, question), Turn(ASSISTANT, answer)]
            if start:
                turns[0] = Turn(USER, f"What else is there to know about {_spoken(entry)}?")
            parts[slug] += 1
            yield Conversation(f"{slug}-{parts[slug]}", tuple(turns))


def _pairs(entry: Entry, members: dict[str, list[Entry]]) -> list[tuple[str, str]]:
    """Questions and answers about one entry, in the order in which they are asked."""
    first, *others = _pieces(entry.paragraphs)
    answer = f"{_introduction(entry)} {first}"
    call, related = _call_text(entry), _related_text(entry, members[entry.parent])
    parts = _member_lists(members[entry.name]) if entry.kind in ("class", "module") else []
    opening = _pick(_QUESTIONS[entry.kind], entry.name, common=True).format(name=entry.name)
    pairs: list[tuple[str, str]] = []
    # Short answers are completed at once, a quarter of them by further turns instead.
    together = _number(entry.name + "/together") % 4 > 0
    if together and not others:
        answer = "\n\n".join(text for text in (answer, call, related if not parts else "") if text)
        call = related = ""
    pairs.append((opening, answer))
    pairs += [(_pick(_MORE, entry.name + text[:40]), text) for text in others]
    if call:
        pairs.append((_pick(_CALL, entry.name), call))
    pairs += [(_pick(_MEMBERS, entry.name + text[:40]), text) for text in parts]
    if related and not parts and not others:
        pairs.append((_pick(_RELATED, entry.name), related))
    return pairs


def _introduction(entry: Entry) -> str:
    if entry.kind == "module":
        return f"The module {entry.name} is part of the Python standard library."
    if entry.kind == "topic":
        return f"This is what the Python reference says about it: {entry.name}."
    if entry.parent == "builtins":
        return f"{entry.name} is a built-in {entry.kind} of Python."
    where = "class" if entry.kind in ("method", "property") else "module"
    kind = "an attribute" if entry.kind == "property" else f"a {entry.kind}"
    return f"{entry.name} is {kind} of the {where} {entry.parent}."


def _call_text(entry: Entry) -> str:
    if not entry.call:
        return ""
    text = f"You call it as {entry.call}."
    defaults = re.findall(r"[(,] ?(\w+)=('[^']*'|[\w.\-]+)", entry.call)
    if defaults and len(defaults) <= 4:
        named = [f"{name} is {value}" for name, value in defaults]
        text += f" Unless you say otherwise, {_and(named)}."
    elif entry.call.endswith("()"):
        text += " It takes no arguments."
    return text


def _related_text(entry: Entry, siblings: list[Entry]) -> str:
    """The next things beside it, each in a few sentences."""
    if entry.kind in ("topic", "module") or len(siblings) < 4:
        return ""
    at = siblings.index(entry)
    near = [siblings[(at + step) % len(siblings)] for step in (1, 2, 3)]
    names = _and([other.name for other in near])
    said = (f"{other.name}: {_summary(other, most_sentences=5)}" for other in near)
    return " ".join([f"Related to it are {names}.", *said])


def _member_lists(parts: list[Entry]) -> list[str]:
    """What a class or module offers, with the first sentence of each, in answers of sensible length."""
    lines = [f"{part.name}: {_summary(part)}" for part in parts]
    answers: list[str] = []
    for piece in _packed(lines, separator="\n"):
        start = "It offers, among other things:" if not answers else "It also offers:"
        answers.append(f"{start}\n{piece}")
    return answers[: 2 * _MOST_TURNS]


def _summary(entry: Entry, most_sentences: int = 1) -> str:
    """The first sentence, and more of them while they are short."""
    first, *more = [sentence for text in entry.paragraphs for sentence in _sentences(text)][:most_sentences]
    for sentence in more:
        if len(first.split()) + len(sentence.split()) > _SUMMARY_WORDS:
            break
        first += " " + sentence
    return first


def _spoken(entry: Entry) -> str:
    return f"this in Python: {entry.name}" if entry.kind == "topic" else entry.name


# --- lengths and choices ----------------------------------------------------------------------


def _pieces(paragraphs: tuple[str, ...]) -> list[str]:
    whole: list[str] = []
    for text in paragraphs:
        whole += _packed(_sentences(text), separator=" ") if len(text.split()) > _MOST_WORDS else [text]
    return list(_packed(whole, separator="\n\n"))


def _packed(texts: Iterable[str], separator: str) -> Iterator[str]:
    """The texts joined to pieces of at most _MOST_WORDS words (a longer single text stays whole)."""
    held: list[str] = []
    words = 0
    for text in texts:
        count = len(text.split())
        if held and words + count > _MOST_WORDS and not held[-1].endswith(":"):
            yield separator.join(held)
            held, words = [], 0
        held.append(text)
        words += count
    if held:
        yield separator.join(held)


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[a-z\d)\"'][.!?])\s+(?=[A-Z\"'])", text)


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _pick(forms: tuple[str, ...], key: str, common: bool = False) -> str:
    number = _number(key)
    if common and number % 2 == 0:
        return forms[0]
    return forms[number // 2 % len(forms)]


def _number(key: str) -> int:
    return int(_digest(key)[:12], 16)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


# --- writing ----------------------------------------------------------------------------------


def _write(path: Path, conversations: list[Conversation]) -> None:
    names = {USER: "human", ASSISTANT: "gpt"}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as file:
            for conversation in conversations:
                turns = [{"from": names[turn.role], "value": turn.text} for turn in conversation.turns]
                sample = {"id": conversation.id, "conversations": turns}
                file.write(json.dumps(sample, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
