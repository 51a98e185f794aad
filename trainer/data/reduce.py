"""All parts -> the output: duplicates decided on signatures, ids made unique, every drop counted, in input order.

Two ordered passes over the parts: the first reads their columns only, the second their text, a part at a time.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data import manifest as manifests
from trainer.data.dedupe import REASONS, Decisions, decide
from trainer.data.forms import LineWriter, encoder, temporary_name, writing
from trainer.data.parts import Signatures, Text, read_signatures, read_text, write_whole
from trainer.data.signatures import PERMUTATIONS, text_hash
from trainer.data.steps import Account, Drop, rejected_line
from trainer.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trainer.data.pipeline import Input, Job

_PART_SUFFIX = re.compile(r"(-part\d+)?\Z")


@dataclass(slots=True)
class Collected:
    """The signatures of all parts, in order."""

    per_file: list[Account] = field(default_factory=list)
    columns: dict[str, list[NDArray[Any]]] = field(default_factory=dict)
    chains: list[NDArray[np.uint64]] = field(default_factory=list)
    ids: list[NDArray[np.uint64]] = field(default_factory=list)  # hashes
    languages: list[NDArray[np.uint8]] = field(default_factory=list)
    language_names: list[str] = field(default_factory=list)
    minhash: Path | None = None

    @property
    def account(self) -> Account:
        total = Account()
        for each in self.per_file:
            total.add(each)
        return total

    def column(self, name: str) -> NDArray[Any]:
        import numpy as np

        return np.concatenate(self.columns.get(name) or [np.zeros(0, np.uint64)])


@dataclass(slots=True)
class Written:
    """What went out."""

    conversations: int = 0
    samples: int = 0
    rejected: int = 0
    output_sha256: str = ""
    rejected_sha256: str = ""


def reduce_parts(job: Job, inputs: Sequence[Input], key: str) -> manifests.Manifest:
    """Writes the output, the rejected samples and, last, the manifest."""
    import numpy as np

    found = _collect(job, inputs)
    count = sum(map(len, found.ids))
    if not count:
        raise _nothing_left(found.account)
    decisions = _decide(job, found)
    kept = decisions.reason == 0
    copies = _copies(np.concatenate(found.ids), kept)
    written = _write(job, inputs, decisions, copies)
    if not written.samples:
        raise _nothing_left(found.account)
    manifest = _manifest(job, inputs, key, found, decisions, copies, written)
    write_whole(job.manifest, manifests.encode(manifest))
    return manifest


def _collect(job: Job, inputs: Sequence[Input]) -> Collected:
    import numpy as np

    found = Collected()
    names: dict[str, int] = {}
    near = job.settings.dedupe is not None and job.settings.dedupe.near is not None
    with ExitStack() as stack:
        if near:
            found.minhash = job.work / temporary_name(Path("minhash"))
            rows = stack.enter_context(found.minhash.open("wb"))
        for each in inputs:
            account = Account()
            for path in each.parts.paths():
                part = read_signatures(path)
                account.add(part.account)
                for name, column in part.columns.items():
                    found.columns.setdefault(name, []).append(column.copy())
                found.chains.append(part.chains.copy())
                found.ids.append(np.array([text_hash(name) for name in part.names["id"]], np.uint64))
                found.languages.append(_codes(part, names))
                if near:
                    rows.write(part.minhash.tobytes())
            found.per_file.append(account)
    found.language_names = list(names)
    return found


def _codes(part: Signatures, names: dict[str, int]) -> NDArray[np.uint8]:
    import numpy as np

    return np.array([names.setdefault(name, len(names)) for name in part.names["language"]], np.uint8)


def _decide(job: Job, found: Collected) -> Decisions:
    import numpy as np

    characters = found.column("characters")
    if job.settings.dedupe is None:
        return Decisions(np.zeros(len(characters), np.uint8), np.full(len(characters), -1, np.int64))
    minhash = None
    if found.minhash is not None and len(characters):
        minhash = np.memmap(found.minhash, np.uint32, "r", shape=(len(characters), PERMUTATIONS))
    chains = np.concatenate(found.chains)
    return decide(characters, found.column("rounds"), chains, minhash, job.settings.dedupe.near or 1.0)


def _copies(ids: NDArray[np.uint64], kept: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """For each conversation, how many kept ones before it have its id: two ids alike would look like one origin."""
    import numpy as np

    order = np.argsort(ids, kind="stable")
    order = order[kept[order]]
    copies = np.zeros(len(ids), np.uint32)
    if len(order):
        ordered = ids[order]
        starts = np.maximum.accumulate(
            np.where(np.r_[True, ordered[1:] != ordered[:-1]], np.arange(len(order)), 0)
        )
        copies[order] = np.arange(len(order)) - starts
    return copies


# --- the second pass --------------------------------------------------------------------------------


def _write(job: Job, inputs: Sequence[Input], decisions: Decisions, copies: NDArray[np.uint32]) -> Written:
    done, written, turned_down = Written(), hashlib.sha256(), hashlib.sha256()
    winners = _winners(inputs, decisions) if job.rejected else {}
    at = 0
    with ExitStack() as stack:
        write = stack.enter_context(writing(job.output, job.work, written.update))
        reject = None
        if job.rejected:
            reject = stack.enter_context(writing(job.rejected, job.work, turned_down.update))
        for path in _part_paths(inputs):
            text = read_text(path)
            if reject:
                done.rejected += _lines(text.rejected, reject)
            here = slice(at, at + len(text.counts))
            at = here.stop
            _write_part(text, here, decisions, copies, winners, write, reject, done)
    done.output_sha256, done.rejected_sha256 = written.hexdigest(), turned_down.hexdigest()
    return done


def _write_part(
    text: Text,
    here: slice,
    decisions: Decisions,
    copies: NDArray[np.uint32],
    winners: dict[int, str],
    write: LineWriter,
    reject: LineWriter | None,
    done: Written,
) -> None:
    """Runs of conversations that are kept as they are go out in one piece; the others one by one."""
    import numpy as np

    reasons, renamed = decisions.reason[here], copies[here]
    special = np.flatnonzero((reasons > 0) | (renamed > 0)).tolist()
    begin = 0
    for end in (*special, len(text.counts)):
        if end > begin:
            write(text.lines[text.lines_at[begin] : text.lines_at[end]])
            done.samples += int(text.counts[begin:end].sum())
            done.conversations += int(np.count_nonzero(text.counts[begin:end]))
            if reject:
                done.rejected += _lines(text.dropped[text.dropped_at[begin] : text.dropped_at[end]], reject)
        begin = end + 1
        if end == len(text.counts):
            break
        lines = bytes(text.lines[text.lines_at[end] : text.lines_at[begin]])
        if reasons[end]:
            if reject:
                detail = f"{winners[int(decisions.winner[here.start + end])]!r} is kept"
                done.rejected += _reject_duplicate(lines, REASONS[reasons[end]], detail, reject)
            continue
        done.samples += _lines(_renamed(lines, int(renamed[end])), write)
        done.conversations += bool(lines)
        if reject:
            done.rejected += _lines(text.dropped[text.dropped_at[end] : text.dropped_at[begin]], reject)


def _part_paths(inputs: Sequence[Input]) -> Iterator[Path]:
    for each in inputs:
        yield from each.parts.paths()


def _lines(lines: bytes | memoryview, write: LineWriter) -> int:
    """Writes whole lines; how many."""
    if not lines:
        return 0
    write(lines)
    return bytes(lines).count(b"\n")


def _renamed(lines: bytes, copy: int) -> bytes:
    """ "abc" -> "abc#2", "abc-part1" -> "abc#2-part1"."""
    import orjson

    encode = encoder()
    renamed = []
    for line in lines.splitlines():
        sample = orjson.loads(line)
        sample["id"] = _PART_SUFFIX.sub(lambda match: f"#{copy + 1}{match[0]}", sample["id"], count=1)
        renamed.append(encode(sample) + b"\n")
    return b"".join(renamed)


def _reject_duplicate(lines: bytes, reason: str, detail: str, reject: LineWriter) -> int:
    import orjson

    for line in lines.splitlines():
        sample = orjson.loads(line)
        reject(rejected_line(encoder(), Drop("dedupe", reason, detail), {"id": sample["id"]}, sample))
    return len(lines.splitlines())


def _winners(inputs: Sequence[Input], decisions: Decisions) -> dict[int, str]:
    """Ids of those that duplicates gave way to."""
    wanted = set(decisions.winner[decisions.reason > 0].tolist())
    found: dict[int, str] = {}
    at = 0
    for path in _part_paths(inputs) if wanted else ():
        names = read_signatures(path).names["id"]
        found.update({at + i: name for i, name in enumerate(names) if at + i in wanted})
        at += len(names)
    return found


# --- the account --------------------------------------------------------------------------------------


def _manifest(
    job: Job,
    inputs: Sequence[Input],
    key: str,
    found: Collected,
    decisions: Decisions,
    copies: NDArray[np.uint32],
    written: Written,
) -> manifests.Manifest:
    import numpy as np

    account, kept = found.account, decisions.reason == 0
    split = job.settings.split
    output: dict[str, Any] = {
        "file": job.output.name,
        "sha256": written.output_sha256,
        "bytes": job.output.stat().st_size,
        "form": job.settings.form,
        "samples": written.samples,
        "conversations": written.conversations,
        "rounds": int(found.column("rounds")[kept].sum() - found.column("dropped_rounds")[kept].sum()),
        "tokens": int(found.column("tokens")[kept].sum()) if split else None,
    }
    notes = dict(sorted(account.notes.items()))
    if renamed := int(np.count_nonzero(copies[kept])):
        notes["doubled id made unique"] = renamed
    rejected = None
    if job.rejected:
        digest = written.rejected_sha256
        rejected = {"file": job.rejected.name, "samples": written.rejected, "sha256": digest}
    codes = np.concatenate(found.languages)[kept]
    languages = Counter(
        {name: int(np.count_nonzero(codes == code)) for code, name in enumerate(found.language_names)}
    )
    return {
        "kind": "corpus",
        "version": manifests.VERSION,
        "key": key,
        "output": output,
        "rejected": rejected,
        "inputs": [_input(each, its) for each, its in zip(inputs, found.per_file, strict=True)],
        "steps": _steps(job, found, decisions, written),
        "notes": notes,
        "languages": {name: number for name, number in languages.most_common() if name and number},
        "first": dict(sorted(account.first.items())),
        "template": split and split.template,
        "tokeniser": split and split.counter().name,
        "tokens_exact": split and split.counter().exact,
        "settings": job.settings.as_dict(),
        "software": manifests.versions(),
    }


def _input(each: Input, account: Account) -> dict[str, Any]:
    forms = dict(sorted(account.forms.items()))
    return {
        "file": each.name,
        "sha256": each.sha256,
        "bytes": each.size,
        "samples": account.samples,
        "forms": forms,
    }


def _steps(job: Job, found: Collected, decisions: Decisions, written: Written) -> list[dict[str, Any]]:
    """In and out of every step that was done, and why the difference; samples of the input until dedupe."""
    import numpy as np

    account, settings = found.account, job.settings
    duplicates = {REASONS[r]: int(np.count_nonzero(decisions.reason == r)) for r in range(1, len(REASONS))}
    drops: dict[str, dict[str, int]] = {}
    for name, number in sorted(account.drops.items(), key=lambda item: (-item[1], item[0])):
        step, _, reason = name.partition(": ")
        drops.setdefault(step, {})[reason] = number
    done = {
        "read": True,
        "clean": settings.clean is not None,
        "filter": settings.clean is not None,
        "contamination": settings.questions is not None,
        "language": settings.language is not None,
        "dedupe": settings.dedupe is not None,
    }
    drops["dedupe"] = {reason: number for reason, number in duplicates.items() if number}
    steps, left = [], account.samples
    for step in (step for step, wanted in done.items() if wanted or drops.get(step)):
        reasons = drops.get(step, {})
        steps.append({"step": step, "in": left, "out": left - sum(reasons.values()), "reasons": reasons})
        left -= sum(reasons.values())
    if settings.split:
        kept = decisions.reason == 0
        columns = ("rounds", "overlong", "shortened", "dropped_rounds")
        rounds = {name: int(found.column(name)[kept].sum()) for name in columns}
        reasons = (
            {"every round too long": left - written.conversations} if left > written.conversations else {}
        )
        steps.append({"step": "split", "in": left, "out": written.samples, "reasons": reasons, **rounds})
    return steps


def _nothing_left(account: Account) -> DataError:
    drops = sorted(account.drops.items(), key=lambda item: (-item[1], item[0]))
    lines = [f"  {number} x {name}, first at {account.first[name]}" for name, number in drops]
    return DataError(
        "\n".join([f"nothing is left of {account.samples} sample(s)", *lines]),
        hint="a sample is {conversations: [{from, value}]}, {messages: [{role, content}]} or {instruction, output}",
    )
