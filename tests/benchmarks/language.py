"""Accuracy and speed of language detectors on labelled conversations, long, short and full of code.

    python tests/benchmarks/language.py [--per-language 60] [--json FILE]

Labelled set: conversations of shared/tools/gen_sharegpt.py, whose language is the one its words are drawn from
(nine of our twelve; random words of a language, without its grammar, so it is harder than real text), and
data/conversations, which is English. Its cuts: a conversation (a question
and an answer), one sentence, three words, a sentence with a block of code, and phrases as typed, in all twelve.
Detectors: lingua with our twelve languages, low and high accuracy, over 300, 600 and 2000 characters; lingua with all
its languages; py3langid with all and with our twelve, where VLAUNCH_PY3LANGID_PYTHON names a python that has it.

CPU seconds of this process after one warm-up text: models are loaded before, and a worker loads them once.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
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
Detector = Callable[[str], str]

_PY3LANGID = """
import json, sys, time
import py3langid
codes, texts = json.load(sys.stdin)
if codes:
    py3langid.set_languages(codes)
py3langid.classify("warm up")
start = time.process_time()
found = [py3langid.classify(text)[0] for text in texts]
print(json.dumps([found, time.process_time() - start]))
"""


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


def lingua_detector(accurate: bool, characters: int, everything: bool = False) -> Detector:
    """lingua on the prose of a text, as language.py prepares it."""
    from lingua import Language, LanguageDetectorBuilder

    chosen = [getattr(Language, ours._LINGUA[code]) for code in ours.CODES]
    builder = LanguageDetectorBuilder.from_languages(*chosen)
    if everything:
        builder = LanguageDetectorBuilder.from_all_languages()
    detector = (builder if accurate else builder.with_low_accuracy_mode()).build()

    def detect(text: str) -> str:
        found = detector.detect_language_of(ours._sample((text,), characters))
        return found.iso_code_639_1.name.lower() if found is not None else "unknown"

    return detect


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--per-language", type=int, default=60)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sets = labelled(options.per_language)
    rows: list[dict[str, Any]] = []
    detectors: dict[str, Detector] = {"ours": lambda text: ours.detect_text(text).code}
    for accurate in (False, True):
        for characters in (300, 600, 2000):
            name = f"lingua {'high' if accurate else 'low'}, {characters} characters"
            detectors[name] = lingua_detector(accurate, characters)
    detectors["lingua low, 600 characters, all 75 languages"] = lingua_detector(False, 600, everything=True)
    for name, detect in detectors.items():
        detect("Dies ist ein Satz, der die Modelle lädt.")
        row: dict[str, Any] = {"detector": name, "texts": 0, "seconds": 0.0}
        for cut, pairs in sets.items():
            start = time.process_time()
            right = sum(detect(text) == code for text, code in pairs)
            row["seconds"] += time.process_time() - start
            row["texts"] += len(pairs)
            row[cut] = right / len(pairs)
        rows.append(row)
    python = os.environ.get("VLAUNCH_PY3LANGID_PYTHON")
    if python:
        for codes in ([], list(ours.CODES)):
            row = {
                "detector": f"py3langid, {'our twelve' if codes else 'all'} languages",
                "texts": 0,
                "seconds": 0.0,
            }
            for cut, pairs in sets.items():
                texts = [ours._sample((text,), 600) for text, _ in pairs]
                run = subprocess.run(
                    [python, "-c", _PY3LANGID],
                    input=json.dumps([codes, texts]),
                    capture_output=True,
                    text=True,
                    check=True,
                )
                found, seconds = json.loads(run.stdout)
                row["seconds"] += seconds
                row["texts"] += len(pairs)
                row[cut] = sum(got == code for got, (_, code) in zip(found, pairs, strict=True)) / len(pairs)
            rows.append(row)
    else:
        print("py3langid: skipped, VLAUNCH_PY3LANGID_PYTHON names no python that has it")
    print(f"{'':46}" + "".join(f"{cut:>20}" for cut in sets) + f"{'texts per CPU-s':>18}")
    for row in rows:
        shares = "".join(f"{row[cut]:20.1%}" for cut in sets)
        print(f"{row['detector']:46}{shares}{row['texts'] / row['seconds']:18,.0f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
