"""The page in headless Chromium, as a person uses it: nothing here looks into its code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Ran
from tests.serving.browser import MISSING, Browser, browser
from tests.serving.stack import Stack, stack, wait_until

pytestmark = pytest.mark.skipif(
    MISSING is not None, reason=f"apt-get install chromium-driver ({MISSING} is missing)"
)

# Where the pictures of the documentation are made, when they are.
PICTURES = os.environ.get("PAGE_PICTURES")
EVIL = (
    "<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\"> "
    "[click](javascript:document.title='hacked') ![p](http://127.0.0.1:9/p.png) <b>bold</b> **strong** `<i>`"
)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two models."""
    folder = tmp_path_factory.mktemp("page")
    with stack(folder, "--votes", folder / "votes.jsonl") as made:
        made.worker("other")
        yield made


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("downloads")) as made:
        made.downloads = tmp_path_factory.getbasetemp() / "downloads0"  # type: ignore[attr-defined]
        yield made


@pytest.fixture
def page(two: Stack, window: Browser) -> Iterator[Browser]:
    """The page as a new visitor sees it; at the end its console must have had nothing to complain of."""
    window.open(two.url)
    window.js("localStorage.clear() || sessionStorage.clear()")
    window.open(two.url)
    window.wait("document.querySelector('#model-0').options.length === 2")
    window.js(
        "[...document.querySelector('#model-0').options].find(o => o.value === 'scripted').selected = true"
    )
    window.js("document.querySelector('#model-0').dispatchEvent(new Event('change', {bubbles: true})) && 1")
    window.said()
    yield window
    assert [line for line in window.said() if line["level"] == "SEVERE"] == []


def say(page: Browser, text: str) -> None:
    page.type("#question", text + "\ue007")


def done(page: Browser, answers: int) -> None:
    page.wait(
        f"document.querySelectorAll('.answer').length === {answers} && document.querySelector('#stop').hidden"
    )


def picture(page: Browser, name: str) -> None:
    if PICTURES:
        page.picture(Path(PICTURES) / f"{name}.png")


def test_send_stream_reload_and_go_on(page: Browser) -> None:
    say(page, "count to 5")
    done(page, 1)
    assert page.texts(".question") == ["count to 5"] and page.texts(".text") == ["1 2 3 4 5"]
    page.js("location.reload()")
    page.wait("document.querySelectorAll('.answer').length === 1")
    assert page.texts(".text") == ["1 2 3 4 5"]
    say(page, "count to 2")
    done(page, 2)
    assert page.texts(".text") == ["1 2 3 4 5", "1 2"]


def test_stop_keeps_what_was_said_and_frees_the_model(page: Browser, two: Stack) -> None:
    say(page, "wait")
    page.wait("document.querySelector('.text')?.innerText === '1'")
    page.click("#stop")
    done(page, 1)
    assert page.texts(".text") == ["1"]
    wait_until(two.idle)
    say(page, "silence")
    page.wait("!document.querySelector('#stop').hidden")
    page.chord("escape")
    done(page, 2)
    wait_until(two.idle)


def test_regenerate_and_edit(page: Browser) -> None:
    say(page, "seed")
    done(page, 1)
    page.click("#settings-button")
    page.type("#seed", "41\t")
    page.click(".tools button", "Regenerate")
    page.wait("document.querySelector('.text').innerText === '41'")
    done(page, 1)
    page.chord("alt", "r")
    done(page, 1)
    page.click(".tools button", "Edit")
    assert page.js("document.querySelector('#question').value") == "seed" and page.texts(".question") == []
    page.js("document.querySelector('#question').value = ''")
    say(page, "count to 1")
    done(page, 1)
    assert page.texts(".text") == ["1"]


def test_parameters_and_system_prompt_reach_the_model(page: Browser) -> None:
    page.click("#settings-button")
    page.type("#temperature", "0.5\t")
    page.type("#max_tokens", "3\t")
    page.type("#system", "be brief\t")
    say(page, "count to 9")
    done(page, 1)
    assert page.texts(".text") == ["1 2 3"]
    kept = json.loads(page.js("localStorage.getItem('vlaunch-chat')"))
    assert kept["system"] == "be brief" and kept["numbers"] == {"temperature": 0.5, "max_tokens": 3}


def test_shift_enter_is_a_new_line(page: Browser) -> None:
    page.type("#question", "count")
    page.chord("shift", "enter")
    assert page.js("document.querySelector('#question').value") == "count\n"
    page.type("#question", "x\ue007")
    done(page, 1)
    assert page.texts(".question") == ["count\nx"]


def test_compare_two_models_and_vote(page: Browser, two: Stack) -> None:
    page.click("#compare")
    page.wait("!document.querySelector('#model-1').hidden")
    models = page.js("[0, 1].map(n => document.querySelector(`#model-${n}`).value)")
    assert models == ["scripted", "scripted"] or set(models) == {"other", "scripted"}
    say(page, "count to 3")
    done(page, 2)
    assert page.texts(".text") == ["1 2 3", "1 2 3"]
    picture(page, "page-compare")
    page.click(".votes button", "Left is better")
    page.wait("document.querySelector('.votes .chosen')")
    (vote,) = [json.loads(line) for line in (two.folder / "votes.jsonl").read_text().splitlines()]
    assert (vote["winner"], vote["question"], vote["left"]["answer"]) == ("left", "count to 3", "1 2 3")


def test_the_export_is_sharegpt_and_vlaunch_data_reads_it(page: Browser, vlaunch: Callable[..., Ran]) -> None:
    say(page, "count to 3")
    done(page, 1)
    page.click("#export")
    file = page.downloads / "conversation.json"  # type: ignore[attr-defined]
    wait_until(file.exists)
    (said,) = json.loads(file.read_text())
    assert said["conversations"] == [
        {"from": "human", "value": "count to 3"},
        {"from": "gpt", "value": "1 2 3"},
    ]


def test_an_answer_with_script_tags_is_text_and_nothing_of_it_runs_or_is_fetched(page: Browser) -> None:
    say(page, f"say {EVIL}")
    done(page, 1)
    assert page.js("document.title") == "vlaunch chat"
    assert page.js("document.querySelectorAll('.text script, .text img, .text b, .text i').length") == 0
    assert page.js("[...document.querySelectorAll('.text a')].map(a => a.protocol)") == ["http:"]
    assert page.texts(".text strong") == ["strong"] and page.texts(".text code") == ["<i>"]
    assert "<script>document.title='hacked'</script>" in page.texts(".text")[0]
    assert page.js("performance.getEntriesByType('resource').every(e => e.name.startsWith(location.origin))")


MARKDOWN = """# Title

- one
- two
  - deeper

1. first
2. second

| a | b |
|---|---|
| 1 | *2* |

```python
x = "<script>"
```

> quoted **strong**

see https://example.org/a_b. ~~gone~~ snake_case_name"""


def test_markdown_is_shown_as_it_is_meant(page: Browser) -> None:
    shown = page.js(
        "(() => { const p = document.createElement('div'); return import('/page/markdown.js')"
        ".then(m => { p.append(...m.render(arguments0)); return p.innerHTML; }) })()".replace(
            "arguments0", json.dumps(MARKDOWN)
        )
    )
    assert "<h1>Title</h1>" in shown
    assert "<ul><li>one</li><li>two<ul><li>deeper</li></ul></li></ul>" in shown
    assert '<ol start="1"><li>first</li><li>second</li></ol>' in shown
    assert "<td><em>2</em></td>" in shown
    assert '<pre><code data-language="python">x = "&lt;script&gt;"</code></pre>' in shown
    assert "<blockquote><p>quoted <strong>strong</strong></p></blockquote>" in shown
    assert 'href="https://example.org/a_b"' in shown and "<s>gone</s> snake_case_name" in shown


def test_on_a_phone_nothing_is_wider_than_the_screen(page: Browser) -> None:
    page.size(375, 700)
    try:
        say(page, "say " + "a" * 300 + " `" + "b" * 300 + "`")
        done(page, 1)
        assert page.js("document.documentElement.scrollWidth") <= 375
        picture(page, "page-phone")
    finally:
        page.size(1100, 800)


def test_the_picture_of_the_documentation(page: Browser) -> None:
    say(page, "say Here is **how**: `vlaunch serve RUN`, then open the page.")
    done(page, 1)
    picture(page, "page")
    assert page.texts(".text code") == ["vlaunch serve RUN"]


def test_an_api_that_wants_a_key_is_told_it_in_the_settings(
    window: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from serving.signing import write_private

    folder = tmp_path_factory.mktemp("keyed")
    write_private(folder / "keys", "sk-0123456789abcdef\n")
    made = Stack(folder)
    try:
        made.controller()
        made.api("--api-key-file", folder / "keys")
        wait_until(lambda: made.request("GET", "/health")[0] == 200)
        window.open(made.url)
        window.wait("!document.querySelector('#settings').hidden")
        assert "key is needed" in window.texts("#notice")[0]
        window.type("#key", "sk-0123456789abcdef\t")
        window.wait("document.querySelector('#notice').innerText.includes('No model')")
        assert window.js("Object.values(localStorage).join().includes('sk-0')") is False
    finally:
        made.stop()
