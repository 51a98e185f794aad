"""Accuracy and speed of language detectors on labelled conversations, long, short and full of code.

    python tests/benchmarks/language.py [--per-language 60] [--json FILE]

Labelled set: conversations of shared/tools/gen_sharegpt.py, whose language is the one its words are drawn from
(nine of our twelve; random words of a language, without its grammar, so it is harder than real text), and
data/conversations, which is English. Its cuts: a conversation (a question
and an answer), one sentence, three words, a sentence with a block of code, and phrases as typed, in all twelve.
Detectors: ours (py3langid among our twelve languages); py3langid among all of its languages; lingua, where it is
installed (pip install lingua-language-detector), among our twelve, low and high accuracy, and among all 75.

CPU seconds of this process after one warm-up text: models are loaded before, and a worker loads them once. Ours is
asked for all texts of a cut at once, as a worker asks for the conversations of a chunk.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from trainer.data import language as ours  # noqa: E402

SHARED = Path(os.environ.get("VLAUNCH_SHARED", REPOSITORY.parent / "shared"))
Labelled = list[tuple[str, str]]
Detector = Callable[[list[str]], list[str]]

_LINGUA = {
    "en": "ENGLISH", "es": "SPANISH", "fr": "FRENCH", "de": "GERMAN", "it": "ITALIAN", "ja": "JAPANESE",
    "ko": "KOREAN", "zh": "CHINESE", "ar": "ARABIC", "ru": "RUSSIAN", "pt": "PORTUGUESE", "nl": "DUTCH",
}  # fmt: skip
# Things that people type languages (the generator has no it, ar, nl).
PHRASES = {
    "en": "How do I sort a list?|Thanks, that works!|Write a short poem about rain|go on",
    "es": "¿Cómo ordeno una lista?|Gracias, funciona|Escribe un poema corto sobre la lluvia|continúa por favor",
    "fr": "Comment trier une liste ?|Merci, ça marche|Écris un court poème sur la pluie|continue s'il te plaît",
    "de": "Wie sortiere ich eine Liste?|Danke, das klappt|Schreib ein kurzes Gedicht über Regen|mach bitte weiter",
    "it": "Come ordino una lista?|Grazie, funziona|Scrivi una breve poesia sulla pioggia|continua per favore",
    "pt": "Como ordeno uma lista?|Obrigado, funciona|Escreva um poema curto sobre a chuva|continue por favor",
    "nl": "Hoe sorteer ik een lijst?|Bedankt, het werkt|Schrijf een kort gedicht over regen|ga door alsjeblieft",
    "ru": "Как отсортировать список?|Спасибо, работает|Напиши короткое стихотворение о дожде|продолжай",
    "ar": "كيف أرتب قائمة؟|شكرا، إنه يعمل|اكتب قصيدة قصيرة عن المطر|استمر من فضلك",
    "zh": "如何对列表排序？|谢谢，可以了|写一首关于雨的短诗|继续",
    "ja": "リストをソートするには？|ありがとう、動きました|雨についての短い詩を書いて|続けてください",
    "ko": "목록을 어떻게 정렬하나요?|고마워요, 작동해요|비에 대한 짧은 시를 써 줘|계속해 주세요",
}


def labelled(per_language: int) -> dict[str, Labelled]:
    """Cut name -> (text, code) pairs; the texts are raw, with code and markup where the cut has them."""
    path = SHARED / "tools/gen_sharegpt.py"
    spec = importlib.util.spec_from_file_location("gen_sharegpt", path)
    assert spec is not None and spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    g = generator.G(7)
    sets: dict[str, Labelled] = {"conversation": [], "sentence": [], "three words": [], "mostly code": []}
    for code in generator.LANGS:
        for _ in range(per_language):
            question = g.question(code, False)
            answer = " ".join(g.sent(code, True) for _ in range(6))
            sets["conversation"].append((f"{question} {answer}", code))
            sets["sentence"].append((g.sent(code, True), code))
            separator = "" if code in ("zh", "ja") else " "
            sets["three words"].append((separator.join(g.words(code, 3)), code))
            program = "\n".join("for value in range(len(the_list)): print(value)" for _ in range(20))
            sets["mostly code"].append((f"{g.sent(code, True)}\n\n```python\n{program}\n```", code))
    sets["typed phrases"] = [
        (phrase, code) for code, phrases in PHRASES.items() for phrase in phrases.split("|")
    ]
    real = json.loads((SHARED / "data/conversations/dummy_conversation.json").read_text())
    sets["data/conversations"] = [
        (" ".join(turn["value"] for turn in sample["conversations"]), "en") for sample in real[:300]
    ]
    return sets


def words_of(text: str) -> str:
    """What every detector is given: the prose of a text, as language.py prepares it."""
    return ours._sample((text,), ours.JUDGED_CHARACTERS)


def own(texts: list[str]) -> list[str]:
    return [language.code for language in ours._judge([words_of(text) for text in texts])]


def all_languages() -> Detector:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    detector = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return lambda texts: [str(detector.classify(words_of(text))[0]) for text in texts]


def lingua(accurate: bool, everything: bool = False) -> Detector:
    from lingua import Language, LanguageDetectorBuilder

    builder = LanguageDetectorBuilder.from_languages(*(getattr(Language, name) for name in _LINGUA.values()))
    if everything:
        builder = LanguageDetectorBuilder.from_all_languages()
    detector = (builder if accurate else builder.with_low_accuracy_mode()).build()

    def detect(text: str) -> str:
        found = detector.detect_language_of(words_of(text))
        return found.iso_code_639_1.name.lower() if found is not None else "unknown"

    return lambda texts: list(map(detect, texts))


def detectors() -> dict[str, Detector]:
    found = {"ours": own, "py3langid, all languages": all_languages()}
    if importlib.util.find_spec("lingua") is None:
        print("lingua: left out, it is not installed")
        return found
    low, high, all_low = lingua(False), lingua(True), lingua(False, everything=True)
    return found | {"lingua, low": low, "lingua, high": high, "lingua, low, all languages": all_low}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--per-language", type=int, default=60)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sets = labelled(options.per_language)
    rows: list[dict[str, Any]] = []
    for name, detect in detectors().items():
        detect(["Dies ist ein Satz, der die Modelle lädt."])
        row: dict[str, Any] = {"detector": name, "texts": 0, "seconds": 0.0}
        for cut, pairs in sets.items():
            start = time.process_time()
            found = detect([text for text, _ in pairs])
            row["seconds"] += time.process_time() - start
            right = sum(code == expected for code, (_, expected) in zip(found, pairs, strict=True))
            row["texts"] += len(pairs)
            row[cut] = right / len(pairs)
        rows.append(row)
    print(f"{'':46}" + "".join(f"{cut:>20}" for cut in sets) + f"{'texts per CPU-s':>18}")
    for row in rows:
        shares = "".join(f"{row[cut]:20.1%}" for cut in sets)
        print(f"{row['detector']:46}{shares}{row['texts'] / row['seconds']:18,.0f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
