"""What a box needs before it can train: tokeniser, tokenised corpus, base weights, on its own empty disk.

The first attempt builds them from the files that config.json names and puts the result into the store, keyed by
everything it depends on; every later attempt, in whatever region, only fetches it. So it is with the base: random
weights that adapters are put on are drawn once, and of a Hugging Face base every attempt takes the first one's commit.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.artifacts.layout import cache_key
from trainer.artifacts.manifest import FileEntry, fetch_verified, put_blob
from trainer.artifacts.store import Store
from trainer.config import StoredFile, TrainConfig
from trainer.conversation import ChatTemplate, Conversation, get_template
from trainer.data.read import FileReport, read_corpus
from trainer.errors import ConfigError, CorruptObject, DataError, MissingKey, NotReady

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from trainer.tokenize import TokenCounts

log = logging.getLogger("trainer")

# Raised when the meaning of the cached files changes, so that an older cache is not taken for a new one.
_FORMAT = 2
_TOKENISER, _TRAIN, _HELD_OUT, _BASE, _REPORT = "tokeniser", "train", "held-out", "base", "report.json"
# In the report: the commit of a Hugging Face base that the first attempt took.
_COMMIT = "base_commit"
_WEIGHTS = ".safetensors"
# Blobs fetched at once: enough to hide a store's latency, few enough to leave the cores to imports.
_PARALLEL = 4


@dataclass(frozen=True, slots=True)
class Inputs:
    """Folders on this box, and what became of the corpus."""

    tokeniser: Path
    train: Path
    held_out: Path | None
    base: Path | None
    report: dict[str, Any]


def fetch(store: Store, config: TrainConfig, directory: Path) -> Inputs | None:
    """What an earlier attempt has prepared; None if this one has to `build` it. No heavy import.

    Where all weights are trained a checkpoint has them all: of the base only its description is fetched then.
    Without a checkpoint `with_weights` fetches the rest.
    """
    if not _fetch_cached(store, cache_key(_cache_name(config)), directory / "inputs"):
        return None
    return _found(store, config, directory, weights=config.train.method != "full")


def with_weights(store: Store, config: TrainConfig, directory: Path, inputs: Inputs) -> Inputs:
    """What `fetch` has given, with the base's weights."""
    if config.train.method != "full" or inputs.base is None:
        return inputs
    return _found(store, config, directory, weights=True)


def build(store: Store, config: TrainConfig, directory: Path) -> Inputs:
    """Train or load the tokeniser, tokenise the corpus, and share both with later attempts.

    Raises:
        DataError: the corpus cannot be read, is empty or leaves nothing to learn.
        CorruptObject: a file does not match the hash that config.json gives.
    """
    base = _base(store, config, directory / "base", config.model.revision, weights=True)
    _build(store, config, base, directory / "corpus", directory / "inputs")
    _share(store, cache_key(_cache_name(config)), directory / "inputs")
    return _found(store, config, directory, weights=True)


def _found(store: Store, config: TrainConfig, directory: Path, *, weights: bool) -> Inputs:
    made = directory / "inputs"
    report = json.loads((made / _REPORT).read_text())
    held_out = made / _HELD_OUT if report[_HELD_OUT] else None
    revision = report.get(_COMMIT) or config.model.revision
    if _needs_random_base(config):
        base: Path | None = made / _BASE
    else:
        base = _base(store, config, directory / "base", revision, weights=weights)
    return Inputs(made / _TOKENISER, made / _TRAIN, held_out, base, report)


def fetch_all(
    fetch_one: Callable[[FileEntry, Path], Path], entries: list[FileEntry], directory: Path
) -> list[Path]:
    """Fetch and verify files, several at once; names may hold one folder."""
    for entry in entries:
        (directory / entry.name).parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_PARALLEL) as pool:
        return list(pool.map(lambda entry: fetch_one(entry, directory), entries))


def _cache_name(config: TrainConfig) -> str:
    """A hash of all that the prepared inputs depend on."""
    depends: dict[str, Any] = {
        "format": _FORMAT,
        "train": [file.blob for file in config.data.train],
        "eval": [file.blob for file in config.data.eval],
        "template": asdict(get_template(config.data.template)),
        "max_length": config.data.max_length,
        "vocab_size": config.model.vocab_size,
        "base": [config.model.base, config.model.revision],
        "files": sorted(file.blob for file in config.model.files),
    }
    if _needs_random_base(config):
        depends["random_base"] = [config.model.shape, config.train.seed]
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def _fetch_cached(store: Store, key: str, directory: Path) -> bool:
    try:
        listed = json.loads(store.get(key))
    except MissingKey:
        return False
    entries = [FileEntry.model_validate(entry) for entry in listed["files"]]
    try:
        fetch_all(partial(fetch_verified, store), entries, directory)
    except (CorruptObject, MissingKey) as error:
        log.warning("the prepared corpus in the store is damaged and is made anew: %s", error)
        for entry in entries:
            store.delete(entry.key)  # or its key would be taken for the sound file that is sent again
        store.delete(key)
        return False
    return True


def _share(store: Store, key: str, directory: Path) -> None:
    """Put the built files into the store; of two boxes that built at once, the first is taken by both."""
    entries = []
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        blob = put_blob(store, path)
        entries.append({"name": path.relative_to(directory).as_posix(), "blob": blob.blob, "size": blob.size})
    if not store.put_new(key, json.dumps({"files": entries}, sort_keys=True).encode()):
        _fetch_cached(store, key, directory)


def _build(store: Store, config: TrainConfig, base: Path | None, corpus: Path, made: Path) -> None:
    from trainer.encode import Encoder
    from trainer.tokenize import carry_template, load_tokeniser, train_tokeniser, write_corpus

    template = get_template(config.data.template)
    train = _files(store, config.data.train, corpus / _TRAIN)
    held_out = _files(store, config.data.eval, corpus / _HELD_OUT)
    if config.model.vocab_size is not None:
        tokeniser = train_tokeniser(_texts(train, template), config.model.vocab_size, template)
    elif base is not None:
        tokeniser = load_tokeniser(str(base), template)
    else:
        raise ConfigError("a model without a base needs a tokeniser of its own: set model.vocab_size")
    carry_template(tokeniser, template, config.data.max_length)
    tokeniser.save_pretrained(made / _TOKENISER)
    encoder = Encoder(tokeniser, template)
    if _needs_random_base(config):
        _write_random_base(config, tokeniser, made / _BASE)
    report: dict[str, Any] = {_HELD_OUT: None, _COMMIT: _commit(config, base)}
    for name, paths in ((_TRAIN, train), (_HELD_OUT, held_out)):
        if not paths:
            continue
        read = read_corpus(paths)
        counts = write_corpus(read, encoder, config.data.max_length, made / name)
        _refuse_unlearnable(name, counts, read.files)
        _tell(name, counts)
        report[name] = asdict(counts)
    (made / _REPORT).write_text(json.dumps(report, sort_keys=True))


def _refuse_unlearnable(name: str, counts: TokenCounts, files: list[FileReport]) -> None:
    if counts.trained:
        return
    lines = [f"the {name} corpus has no token to learn from"]
    for file in files:
        reasons = {"ends before its first answer within max_length": file.conversations, **file.refused}
        told = ", ".join(f"{count} x {reason}" for reason, count in reasons.items() if count)
        lines.append(f"  {file.path.name}: {told or 'empty'}")
    raise DataError(
        "\n".join(lines), hint="raise --max-length, or look at the files with `vlaunch data stats FILE`"
    )


def _tell(name: str, counts: TokenCounts) -> None:
    log.info(
        "%s corpus: %d conversations, %d tokens, %d of them learnt from",
        name, counts.conversations, counts.tokens, counts.trained,
    )  # fmt: skip
    if counts.cut:
        log.warning("%d conversations are longer than max_length and were cut there", counts.cut)
    if counts.untrained:
        log.warning("%d conversations end before their first answer and were left out", counts.untrained)


def _texts(paths: list[Path], template: ChatTemplate) -> Iterator[str]:
    for conversation in read_corpus(paths):
        yield from _plain(conversation, template)


def _plain(conversation: Conversation, template: ChatTemplate) -> Iterator[str]:
    return (segment.text for segment in template.render(conversation) if not segment.special)


def _files(store: Store, files: tuple[StoredFile, ...], directory: Path) -> list[Path]:
    """User files under their own names; two of one name are told apart by a number in front."""
    entries = [
        FileEntry(name=f"{number:04d}/{file.name}", blob=file.blob, size=file.size)
        for number, file in enumerate(files)
    ]
    return fetch_all(partial(fetch_verified, store), entries, directory)


def _needs_random_base(config: TrainConfig) -> bool:
    """Whether adapters are to be put on random weights: the one base that no folder and no hub has."""
    return config.train.method != "full" and config.model.shape is not None


def _write_random_base(config: TrainConfig, tokeniser: PreTrainedTokenizerFast, directory: Path) -> None:
    from trainer.model import model_config, write_random

    log.warning("adapters on random weights learn little: --model NAME gives them a model that has learnt")
    write_random(model_config(config, tokeniser, None), config.train.seed, directory)


def _commit(config: TrainConfig, base: Path | None) -> str | None:
    """The commit of a base from Hugging Face: its cache names the folder of a snapshot by it."""
    from_hub = base is not None and config.model.base is not None and not Path(config.model.base).is_dir()
    return base.name if base is not None and from_hub and re.fullmatch("[0-9a-f]{40}", base.name) else None


def _base(
    store: Store, config: TrainConfig, directory: Path, revision: str | None, *, weights: bool
) -> Path | None:
    """The folder of the base, if there is one; without `weights` just its other files are sure to be there."""
    if config.model.files:
        files = [FileEntry(**file.model_dump()) for file in config.model.files]
        wanted = [file for file in files if weights or not file.name.endswith(_WEIGHTS)]
        missing = [file for file in wanted if not (directory / file.name).is_file()]
        fetch_all(partial(fetch_verified, store), missing, directory)
        return directory
    if config.model.base is None:
        return None
    if Path(config.model.base).is_dir():
        return Path(config.model.base)
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.model", "*.jinja", *([f"*{_WEIGHTS}"] if weights else [])]
    try:
        return Path(snapshot_download(config.model.base, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise NotReady(
            f"the base model {config.model.base} cannot be fetched: {' '.join(str(error).split())}",
            hint="check its name and the network; a closed model needs HF_TOKEN",
        ) from None
