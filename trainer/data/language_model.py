"""py3langid's model, restricted to some languages and asked about many texts at once.

py3langid goes over a text byte by byte in Python, each step somewhere else in a table of 39 MB. What that walk has
found at a byte is the longest n-gram of the model that ends there; so here numpy takes the walk from all bytes of a
hundred texts at once, one byte further each time for those whose n-gram still grows (six bytes is the longest), in a
tree of the n-grams of 2 MB. The features and the sums are py3langid's: tests/data/test_language.py asks both.

To unpack py3langid's file takes 0.3 CPU seconds. What is needed of it is kept in the user's cache folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

from trainer.errors import NotReady

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BREAK = "\0"  # around every text: no n-gram of the model holds it
_BREAK = BREAK.encode()
_AT_ONCE = 256  # texts: their numbers stay in the processor's cache
_FORMAT = 1  # of the file in the cache folder
_TREE, _MODEL = ("pairs", "at", "follows", "next"), ("feature", "weights", "priors")  # arrays of it


@dataclass(frozen=True, slots=True)
class Tree:
    """N-grams of bytes. A node is a number, the nodes of one length one after the other, and 0 is of no byte at all.

    pairs: 256 * byte + next byte -> the node of both, of the second alone, or 0
    at: by node, where its row of four begins in the next two, one for each quarter of the 256 bytes
    follows: which of a quarter's 64 bytes go on from there, as bits
    next: the node of the first of these; those of the others come right after it
    longer: the first node of two bytes
    """

    pairs: NDArray[np.int32]
    at: NDArray[np.int32]
    follows: NDArray[np.uint64]
    next: NDArray[np.int32]
    longer: int

    def walk(self, text: bytes) -> NDArray[np.int32]:
        """The node of the longest n-gram that ends at each byte. The text must begin and end with BREAK."""
        import numpy as np

        one = np.uint64(1)
        letters = np.frombuffer(text, np.uint8)
        nodes = np.zeros(len(letters), np.int32)
        nodes[1:] = self.pairs.take((letters[:-1].astype(np.uint16) << 8) | letters[1:])
        last = np.flatnonzero(nodes >= self.longer)
        node = nodes[last]
        while len(last):
            last = last + 1
            letter = letters.take(last)
            place = self.at.take(node) + (letter >> 6)
            follows, mine = self.follows.take(place), one << (letter & 63)
            there = np.flatnonzero((follows & mine) != 0)
            last = last.take(there)
            before = follows.take(there) & (mine.take(there) - one)
            node = self.next.take(place.take(there)) + np.bitwise_count(before)
            nodes[last] = node
        return nodes


@dataclass(frozen=True, slots=True)
class Model:
    """What the n-grams of a text say of every language.

    feature: by node, -1 for none; weights: (features, codes), logarithms; priors: (codes), as well.
    """

    codes: tuple[str, ...]
    tree: Tree
    feature: NDArray[np.int32]
    weights: NDArray[np.float32]
    priors: NDArray[np.float32]

    def classify(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """The likeliest code of each text and its share, 0 to 1; of one without features, any and 1 / codes.

        No text may hold BREAK.
        """
        found: list[tuple[str, float]] = []
        for at in range(0, len(texts), _AT_ONCE):
            shares = self._shares([_as_learnt(text) for text in texts[at : at + _AT_ONCE]])
            best = shares.argmax(axis=1).tolist()
            found += zip([self.codes[code] for code in best], shares.max(axis=1).tolist(), strict=True)
        return found

    def _shares(self, texts: Sequence[bytes]) -> NDArray[np.float64]:
        """(texts, codes), rows that sum to 1."""
        import numpy as np

        sizes = np.array([len(text) for text in texts])
        text, feature, count = self._features(texts, sizes)
        scores = np.zeros((len(texts), len(self.codes)))
        if len(text):
            starts = np.flatnonzero(np.diff(text, prepend=-1))
            # py3langid's: naive Bayes, but a feature met again counts less each time.
            evidence = np.log1p(count.astype(np.float32))[:, None] * self.weights.take(feature, axis=0)
            scores[text[starts]] = np.add.reduceat(evidence, starts, axis=0) + self.priors
        # py3langid's as well: the longer a text, the less its bytes say of each other's language.
        scores /= np.sqrt(np.maximum(sizes, 1))[:, None]
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(shares / shares.sum(axis=1, keepdims=True))

    def _features(
        self, texts: Sequence[bytes], sizes: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """(index of the text, feature, how often it is there), in this order, each pair once."""
        import numpy as np

        features = self.feature.take(self.tree.walk(_BREAK.join((b"", *texts, b""))))[1:]
        width = len(self.weights)
        # One number for both: to sort them is the quickest way to count.
        pairs = (np.repeat(np.arange(len(texts)) * width, sizes + 1) + features)[features >= 0]
        pairs.sort()
        starts = np.flatnonzero(np.diff(pairs, prepend=-1))
        count = np.diff(starts, append=len(pairs))
        return (*np.divmod(pairs[starts], width), count)


def _as_learnt(text: str) -> bytes:
    """As the texts were that the model was made from."""
    return normalize("NFC", text.lower() if text.isupper() else text).encode("utf-8", "surrogatepass")


# --- where it is from ---------------------------------------------------------------------------


def load(codes: Sequence[str], cache: Path | None = None) -> Model:
    """py3langid's own model, among these languages: 0.35 CPU seconds, 130 MB at its peak; from `cache`, 0.01 and 8 MB.

    cache: a folder. Whatever is wrong with it or with the file in it, the model is read anew.
    """
    try:
        from py3langid.langid import MODEL_DIR, MODEL_FILE
    except ImportError as error:
        raise NotReady("py3langid is not installed", hint="pip install 'vlaunch[data]'") from error
    if cache is None:
        return _read(codes)
    file = cache / "languages.npz"
    digest = hashlib.sha256(f"{_FORMAT} {' '.join(codes)} ".encode())
    digest.update((MODEL_DIR / MODEL_FILE).read_bytes())
    kept = _kept(file, digest.digest())
    if kept is None:
        from trainer.data.parts import write_whole

        kept = _read(codes)
        with suppress(OSError):
            write_whole(file, _packed(kept, digest.digest()))
    return kept


def _kept(file: Path, key: bytes) -> Model | None:
    import numpy as np

    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as found:
            if found["key"].tobytes() != key:
                return None
            tree = Tree(**{name: found[name] for name in _TREE}, longer=int(found["longer"]))
            return Model(tuple(found["codes"].tolist()), tree, **{name: found[name] for name in _MODEL})
    except Exception:  # zipfile has many for a file that is not what it seems; it looks at its checksums
        return None


def _packed(model: Model, key: bytes) -> bytes:
    import numpy as np

    arrays = {name: getattr(model.tree, name) for name in _TREE}
    arrays |= {name: getattr(model, name) for name in _MODEL}
    arrays |= {"key": np.frombuffer(key, np.uint8), "codes": np.array(model.codes)}
    file = BytesIO()
    np.savez(file, allow_pickle=False, longer=model.tree.longer, **arrays)
    return file.getvalue()


def _read(codes: Sequence[str]) -> Model:
    """From py3langid's own file."""
    import numpy as np
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    whole: Any = LanguageIdentifier.from_model_file(MODEL_FILE)
    whole.set_languages(codes)
    moves = np.asarray(whole.tk_nextmove, np.uint32).reshape(-1, 256)
    tree, states = _tree(moves, np.asarray(whole.tk_row))
    return Model(
        codes=tuple(whole.nb_classes),
        tree=tree,
        feature=np.asarray(whole.tk_output, np.int32)[states],
        weights=whole.nb_ptc.astype(np.float32, order="C"),  # a row for a feature, as they are taken
        priors=whole.nb_pc.astype(np.float32),
    )


def _tree(moves: NDArray[np.uint32], row: NDArray[Any]) -> tuple[Tree, NDArray[np.int64]]:
    """(the n-grams, the state of py3langid's walk that each node was).

    moves: (rows, 256), the next state by byte; row: by state, its row of moves. A state is the longest n-gram so far:
    the bytes that first lead to one are that n-gram. One that nothing follows has the row of a shorter one.
    """
    import numpy as np

    node = np.full(len(row), -1, np.int32)
    node[0] = 0
    place = np.zeros(len(row), np.int32)
    known = np.zeros(len(moves), bool)
    level = np.zeros(1, np.int64)  # states, those of n-grams of one length
    states, follows, starts = [level], [np.zeros(4, np.uint64)], [np.zeros(4, np.int32)]
    nodes, places = 1, 4
    while len(level):
        level = level[~known[row[level]]]
        known[row[level]] = True
        steps = moves[row[level]]
        fresh = node[steps] < 0
        bits = np.packbits(fresh, axis=1, bitorder="little").view("<u8").ravel()
        counts = np.bitwise_count(bits)
        follows.append(bits)
        starts.append((nodes + np.cumsum(counts, dtype=np.int32) - counts).astype(np.int32))
        place[node[level]] = np.arange(places, places + 4 * len(level), 4)
        places += 4 * len(level)
        level = steps[fresh].astype(np.int64)
        node[level] = np.arange(nodes, nodes + len(level))
        nodes += len(level)
        states.append(level)
    pairs = node[moves[row[moves[row[0]]]]].ravel()
    longer = 1 + int(np.bitwise_count(follows[1]).sum())
    tree = Tree(pairs, place, np.concatenate(follows), np.concatenate(starts), longer)
    return tree, np.concatenate(states)
