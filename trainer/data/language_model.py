"""py3langid's model, restricted to some languages and asked about many texts at once.

py3langid goes over a text byte by byte in Python, each step somewhere else in its table of 39 MB. Here numpy takes a
step for every byte of a hundred texts. What the walk has found at a byte is the longest n-gram of the model that ends
there, wherever it began; so all bytes begin to walk at once, and one more step each time for those whose n-gram still
grows (six bytes is the longest). The features and the sums are py3langid's (tests/data/test_language.py asks both).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

from trainer.errors import NotReady

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BREAK = "\0"  # between two texts: no n-gram of the model holds it
_BREAK = BREAK.encode()
_AT_ONCE = 256  # texts: their numbers stay in the processor's cache


@dataclass(frozen=True, slots=True)
class Model:
    """A walk over bytes that finds n-grams, and what each says of every language.

    moves: where a step leads, 256 for each row; row: by state, where its row begins; feature: by state, -1 for none;
    weights: (features, codes), logarithms; priors: (codes), as well.
    """

    codes: tuple[str, ...]
    moves: NDArray[np.uint32]
    row: NDArray[np.uint32]
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
            evidence = np.log1p(count.astype(np.float32))[:, None] * self.weights[feature]
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

        features = self.feature[self._walk(_BREAK.join((*texts, b"")))]
        width = len(self.weights)
        # One number for both: to sort them is the quickest way to count.
        pairs = (np.repeat(np.arange(len(texts)) * width, sizes + 1) + features)[features >= 0]
        pairs.sort()
        starts = np.flatnonzero(np.diff(pairs, prepend=-1))
        count = np.diff(starts, append=len(pairs))
        return (*np.divmod(pairs[starts], width), count)

    def _walk(self, text: bytes) -> NDArray[np.uint32]:
        """The state after each byte. The last byte must be that of BREAK."""
        import numpy as np

        letters = np.frombuffer(text, np.uint8)
        before = np.zeros(len(letters), np.uint32)
        state: NDArray[np.uint32] = self.moves[self.row[0] + letters]
        while len(grown := np.flatnonzero(state != before)):
            # Elsewhere the next step is the one that was taken: from the same state over the same byte.
            before = state.copy()
            state[grown + 1] = self.moves[self.row[before[grown]] + letters[grown + 1]]
        return state


def _as_learnt(text: str) -> bytes:
    """As the texts were that the model was made from."""
    return normalize("NFC", text.lower() if text.isupper() else text).encode("utf-8", "surrogatepass")


def load(codes: Sequence[str]) -> Model:
    """py3langid's own model, among these languages. 0.3 CPU seconds, 130 MB at its peak."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise NotReady("py3langid is not installed", hint="pip install 'vlaunch[data]'") from error
    import numpy as np

    whole: Any = LanguageIdentifier.from_model_file(MODEL_FILE)
    whole.set_languages(codes)
    return Model(
        codes=tuple(whole.nb_classes),
        moves=np.asarray(whole.tk_nextmove, np.uint32),
        row=np.asarray(whole.tk_row, np.uint32) << np.uint32(8),
        feature=np.asarray(whole.tk_output, np.int32),
        weights=whole.nb_ptc.astype(np.float32),
        priors=whole.nb_pc.astype(np.float32),
    )
