"""Languages of conversations, and the rule of which ones a corpus keeps."""

from __future__ import annotations

from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.conversation import Conversation, Turn
from trainer.data.clean import Rejection
from trainer.data.language import (
    CODES,
    UNKNOWN,
    Language,
    LanguageRule,
    _letters,
    detect,
    detect_text,
    detector,
    language_rule,
)
from trainer.data.language_model import BREAK, load
from trainer.errors import ConfigError

SENTENCES = {
    "en": "Could you please explain how the garbage collector finds what is no longer used?",
    "es": "¿Podrías explicarme cómo encuentra el recolector lo que ya no se usa?",
    "fr": "Pourrais-tu m'expliquer comment le ramasse-miettes trouve ce qui n'est plus utilisé ?",
    "de": "Kannst du mir erklären, wie die Speicherbereinigung findet, was nicht mehr gebraucht wird?",
    "it": "Potresti spiegarmi come fa il programma a trovare quello che non si usa più?",
    "ja": "ガベージコレクタが使われなくなったものをどうやって見つけるのか説明してください。",
    "ko": "가비지 컬렉터가 더 이상 쓰이지 않는 것을 어떻게 찾는지 설명해 주세요.",
    "zh": "请解释一下垃圾回收器是如何找到不再使用的对象的。",
    "ar": "هل يمكنك أن تشرح كيف يجد جامع القمامة ما لم يعد مستخدما؟",
    "ru": "Объясни, пожалуйста, как сборщик мусора находит то, что больше не используется.",
    "pt": "Você poderia explicar como o coletor encontra o que não é mais usado?",
    "nl": "Kun je uitleggen hoe de vuilnisophaler vindt wat niet meer gebruikt wordt?",
}
PROGRAM = "```python\n" + "for value in the_list_of_all_values: print(value, end='')\n" * 30 + "```"


def dialogue(question: str, answer: str) -> Conversation:
    return Conversation("x", (Turn("user", question), Turn("assistant", answer)))


@pytest.mark.parametrize("code", CODES)
def test_a_sentence_of_each_language_is_known(code: str) -> None:
    assert detect_text(SENTENCES[code]).code == code
    assert detect([dialogue(SENTENCES[code], SENTENCES[code])])[0].confidence > 0.6


@pytest.mark.parametrize("code", CODES)
def test_code_and_addresses_do_not_count_as_english(code: str) -> None:
    text = f"{PROGRAM}\n\n{SENTENCES[code]}\n\nhttps://example.com/the/best/answer/of/them/all `return value`"
    assert detect([dialogue(text, text)])[0].code == code


@pytest.mark.parametrize("text", ["", "42", "?!", PROGRAM, "https://example.com/about-us", "x = 1"[4:]])
def test_what_has_no_words_is_unknown(text: str) -> None:
    assert detect_text(text) == Language(UNKNOWN, 0.0)
    assert detect([dialogue(text, text)])[0].code == UNKNOWN


def test_the_system_turn_does_not_count() -> None:
    turns = (
        Turn("system", "You are a helpful assistant. " * 9),
        Turn("user", SENTENCES["ko"]),
        Turn("assistant", "네"),
    )
    assert detect([Conversation("x", turns)])[0].code == "ko"


def test_a_megabyte_of_text_is_judged_by_its_beginning() -> None:
    assert detect_text(SENTENCES["nl"] * 10_000).code == "nl"


def test_many_conversations_are_judged_as_each_by_itself() -> None:
    texts = ["", *SENTENCES.values(), "42", *(text[:9] for text in SENTENCES.values())] * 13
    conversations = [dialogue(text, text[::-1]) for text in texts]
    assert detect(conversations) == [detect([each])[0] for each in conversations]
    assert detect([]) == []


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_ascii_is_cut_into_words_as_all_text_is(text: str) -> None:
    # The letter at the end makes the whole text one that is not ASCII, and is no part of its words.
    assert _letters(text).rstrip() == _letters(text + "\n\u0436")[:-1].rstrip()


@cache
def py3langid() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(CODES)
    return identifier


# A piece of what people write, or what nobody does.
PIECES = st.one_of(st.sampled_from(sorted(SENTENCES.values())), st.text(max_size=9), st.just("naïve Ⅷ "))
CUT = st.builds(lambda piece, begin, end: piece[begin:end], PIECES, st.integers(0, 40), st.integers(1, 80))


@settings(deadline=None)
@given(st.lists(st.lists(CUT, max_size=4).map("".join), max_size=5))
def test_the_answers_are_those_of_py3langid(texts: list[str]) -> None:
    texts = [text.replace(BREAK, "") for text in texts]
    for text, (code, share) in zip(texts, detector().classify(texts), strict=True):
        expected = dict(py3langid().rank(text))
        assert share == pytest.approx(expected[code], abs=1e-4)
        assert share == pytest.approx(max(expected.values()), abs=1e-4)


def test_what_we_rely_on_in_py3langid_s_model_holds() -> None:
    found = detector()
    assert not (found.tree.follows[::4] & 1).any(), "an n-gram holds the mark between two texts"
    assert sorted(found.codes) == sorted(CODES), "a code has two columns: their shares would have to be added"


def test_the_model_is_kept_and_is_the_same_from_there(tmp_path: Path) -> None:
    made = load(CODES, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    began = file.stat().st_mtime_ns
    kept = load(CODES, tmp_path / "cache")
    assert file.stat().st_mtime_ns == began
    assert kept.codes == made.codes and kept.tree.longer == made.tree.longer
    for name in ("tree.pairs", "tree.at", "tree.follows", "tree.next", "feature", "weights", "priors"):
        left, right = attrgetter(name)(made), attrgetter(name)(kept)
        assert left.dtype == right.dtype and (left == right).all(), name


@pytest.mark.parametrize("what", ["empty", "half", "one byte", "other languages", "no file"])
def test_a_kept_model_that_is_not_whole_is_made_anew(tmp_path: Path, what: str) -> None:
    file = tmp_path / "languages.npz"
    load(CODES[:2] if what == "other languages" else CODES, tmp_path)
    whole = file.read_bytes()
    if what == "no file":
        file.unlink()
        file.mkdir()
    elif what != "other languages":
        at = len(whole) // 2
        changed = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        file.write_bytes({"empty": b"", "half": whole[:at], "one byte": changed}[what])
    found = load(CODES, tmp_path)
    assert found.codes == detector().codes
    assert (found.weights == detector().weights).all()
    if what == "half":
        assert file.read_bytes() == whole


def test_without_a_folder_to_write_to_the_model_is_read_each_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert load(CODES, tmp_path / "file" / "cache").codes == detector().codes


def test_keep_drops_other_languages_and_skip_the_named_ones() -> None:
    keep, skip = language_rule(keep="en, zh"), language_rule(skip=["ko"])
    assert keep.judge(Language("en", 0.9)) is None
    assert keep.judge(Language("ko", 0.9)) == Rejection("language", "ko 0.90")
    assert skip.judge(Language("ko", 0.9)) == Rejection("language", "ko 0.90")
    assert skip.judge(Language("en", 0.9)) is None
    assert LanguageRule().judge(Language("fr", 1.0)) is None


def test_unknown_is_dropped_only_where_it_is_named() -> None:
    unsure = Language("ko", 0.4)
    for rule in (language_rule(keep="en"), language_rule(skip="ko"), LanguageRule()):
        assert rule.judge(unsure) is None
        assert rule.judge(Language(UNKNOWN, 0.0)) is None
    assert language_rule(keep="en", skip="unknown").judge(unsure) == Rejection("language", "unknown 0.40")
    assert language_rule(skip="ko", threshold=0.3).judge(unsure) == Rejection("language", "ko 0.40")


@pytest.mark.parametrize(
    ("keep", "skip", "threshold"),
    [
        ("eng", None, 0.5),
        (None, "klingon", 0.5),
        ("en", "ko", 0.5),
        ("unknown", None, 0.5),
        ("en", None, 1.5),
    ],
)
def test_a_rule_that_makes_no_sense_is_an_error(keep: str | None, skip: str | None, threshold: float) -> None:
    with pytest.raises(ConfigError):
        language_rule(keep, skip, threshold)
