"""The chat page in a real browser, talking to the real server, whose model is a parrot: it says what it was asked.

Nothing here waits for a time: a stream is held back by `Line` until the test has seen what it wanted to see. Pictures
of the page go to the folder NANOCHAT_SCREENSHOTS, if that is set.

Run: python -m pytest tests/test_page.py
"""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.browser import Line, Visit, chromium
from tests.chat_server import chat_server
from tests.injections import INJECTIONS

PAGE = Path(__file__).resolve().parents[1] / "nanochat" / "ui.html"
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
CHAT = "**/v1/chat/completions"
SENTENCE = "The lamp burns from dusk till dawn and the cat sleeps on the stairs."
HELD = 1400  # bytes of a stream: the answer to SENTENCE has begun, and is not complete


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(browser):  # without a browser there is no need for one
    with chat_server(delay=0) as server:
        yield server


@pytest.fixture(scope="module")
def line(server):
    with Line(server.url) as line:
        yield line


@pytest.fixture(scope="module")
def regulars(browser):
    return {}


@pytest.fixture
def visits(browser, regulars):
    """`visits(url)`: someone at the page; with settings (a phone, ...) in a browser of their own. The test fails at its
    end if anything ran, was refused or went wrong on one of their pages."""
    now = []

    def visit(url: str, **settings) -> Visit:
        if settings:
            now.append(Visit(browser, url, **settings))
        else:
            if url not in regulars:
                regulars[url] = Visit(browser, url, viewport=DESKTOP)
            now.append(regulars[url].again())
        return now[-1]

    yield visit
    for one in now:
        one.check()
        if one not in regulars.values():
            one.context.close()


@pytest.fixture
def visit(visits, server):
    return visits(server.url)


@pytest.fixture
def page(visit):
    return visit.page


def expect(what):
    from playwright.sync_api import expect

    expect.set_options(timeout=20_000)
    return expect(what)


def send(page, text: str) -> None:
    page.fill("#question", text)
    page.press("#question", "Enter")


def until(page, condition: str, arg: object = None) -> None:
    page.wait_for_function(condition, arg=arg, polling=20)  # by the clock: a tab behind another paints no frames


def answered(page, turns: int) -> None:
    until(page, """(turns) => document.querySelectorAll(".turn").length === turns
        && document.querySelector(".turn:last-child .answer").getAttribute("aria-busy") === "false" """, turns)


def say(page, *texts: str) -> None:
    """Ask, and wait for the answer. Typed by script: `send` is what a person does, this is four times as quick."""
    for text in texts:
        turns = page.evaluate("""text => {
            setField(text);
            document.getElementById("composer").requestSubmit();
            return state.open.turns.length;
        }""", text)
        answered(page, turns)


def retry(page) -> None:
    page.click(".turn:last-child [data-do=retry]:visible")
    answered(page, page.locator(".turn").count())


def edit(page) -> None:
    page.hover(".turn:last-child .question")
    page.click(".turn:last-child [data-do=edit]")


def said_so_far(page, start: str) -> str:
    """What the answer has come to, once it begins with `start`."""
    until(page, """(start) => {
        const said = [...document.querySelectorAll(".said")].at(-1);
        return said && said.textContent.startsWith(start);
    }""", start)
    return said(page)


def last(page, selector: str):
    return page.locator(f".turn:last-child {selector}")


def said(page) -> str:
    return last(page, ".said").text_content()


def texts(page, selector: str) -> list[str]:
    return page.locator(selector).all_text_contents()


def titles(page) -> list[str]:
    return texts(page, "#saved bdi")


def kept(page) -> list[dict]:
    """What is in the browser's storage, the newest first."""
    found = page.evaluate("keptKeys().map((key) => localStorage.getItem(key))")
    return sorted((json.loads(text) for text in found), key=lambda one: -one["updated"])


def delete_all(page, answer: str) -> None:
    page.click("#delete-all")
    page.click(f"#ask-first [value={answer}]")


def instead(page, **answer) -> None:
    """Questions get this answer from now on; the server does not see them."""
    page.unroute_all()
    page.route(CHAT, lambda route: route.fulfill(**answer))


def stream(*chunks: object) -> str:
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)


def chunk(content: str, **ending: str) -> dict:
    return {"choices": [{"index": 0, "delta": {"content": content}, **ending}]}


# --------------------------------------------------------------------------- the file itself


class Attributes(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.forbidden: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            outside = name in ("src", "href", "action") and not (value or "#").startswith(("#", "data:image/"))
            if name.startswith("on") or name == "style" or outside:
                self.forbidden.append(f"{self.getpos()[0]}: {name}={value}")


def test_the_page_is_one_file_that_its_policy_allows():
    """One script and one style, inline; no handler or style in an attribute, nothing from elsewhere, no markup made of
    text. The last is also what Trusted Types forbid, but they would only say so when that line runs."""
    text = PAGE.read_text(encoding="utf-8")
    seen = Attributes()
    seen.feed(text)
    assert seen.forbidden == []
    assert seen.tags.count("script") == seen.tags.count("style") == 1
    assert "<script>" in text and "<style>" in text  # without attributes: this is what the server looks for
    assert re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|\beval\(|new Function|cssText"
                      r"|srcdoc|@import|url\(", text) == []


# --------------------------------------------------------------------------- the stream


# Their lines end by "\n", "\r\n" and "\r" in turn: "\r\n" cut in two would end an event of two lines too early.
TRICKY = ["x", "two\nlines", "naïve e\u0301 👩\u200d🔬🇫🇷 漢字 𝄞", "", " leading", '{"a": "data: [DONE]\\n\\n"}',
          "\u2028\u2029\x85\x0b"]


def test_events_do_not_depend_on_where_the_stream_is_cut(page):
    """Each place is tried, within a character, within "\\r\\n", within a field's name; and one byte at a time.

    trap: utf8-stream
    trap: sse-payload
    """
    raw = b": a comment\r\n\r\nevent: x\nid: 7\n"
    for i, text in enumerate(TRICKY):
        end = ["\n", "\r\n", "\r"][i % 3].encode()
        raw += b"".join(b"data: " + part.encode() + end for part in text.split("\n")) + end
    raw += b"data:no space\n\ndata: unfinished"
    got = page.evaluate(
        """async (bytes) => {
            const read = async (...pieces) => {
                const stream = new ReadableStream({ start(to) {
                    for (const piece of pieces) to.enqueue(new Uint8Array(piece));
                    to.close();
                } });
                const found = [];
                for await (const data of serverEvents(stream)) found.push(data);
                return JSON.stringify(found);
            };
            const results = new Set([await read(...bytes.map((byte) => [byte]))]);
            for (let cut = 0; cut <= bytes.length; cut += 1) {
                results.add(await read(bytes.slice(0, cut), bytes.slice(cut)));
            }
            return [...results];
        }""", list(raw))
    assert [json.loads(one) for one in got] == [[*TRICKY, "no space"]]


def test_characters_arrive_whole_though_bytes_come_singly(visits, line):
    """trap: utf8-stream"""
    line.behave(piece=1)
    page = visits(line.url).page
    text = "naïve, e\u0301, 漢字, 👩\u200d🔬, 🇫🇷, 𝄞, שלום, ครับ"
    say(page, text)
    assert said(page) == text
    assert "\ufffd" not in page.content()


def test_what_looks_like_an_event_is_only_text(page):
    """trap: sse-payload"""
    text = 'data: [DONE]\n\ndata: {"error": {"message": "no"}}\n\n: hm\u2028\u2029data:\n\n\nevent: end'
    say(page, text)
    assert last(page, ".question .text").text_content() == text
    assert said(page) == text
    expect(last(page, ".trouble")).to_be_hidden()


def test_an_answer_grows_and_stops_and_what_was_said_stays(visits, line):
    line.behave(hold_at=HELD)
    page = visits(line.url).page
    send(page, SENTENCE)
    before = said_so_far(page, "The")
    assert before != SENTENCE and SENTENCE.startswith(before)
    expect(page.locator("#send")).to_have_attribute("aria-label", "Stop")
    expect(last(page, ".answer")).to_have_attribute("aria-busy", "true")
    send(page, "not yet")  # one question at a time: the field keeps it
    assert page.locator(".turn").count() == 1 and page.input_value("#question") == "not yet"
    line.go.set()
    answered(page, 1)
    assert said(page) == SENTENCE

    for turns, how in enumerate(("button", "escape"), start=2):
        line.behave(hold_at=HELD)
        send(page, SENTENCE)
        said_so_far(page, "The")
        page.click("#send") if how == "button" else page.keyboard.press("Escape")
        answered(page, turns)
        stopped = said(page)
        assert stopped and stopped != SENTENCE and SENTENCE.startswith(stopped)
        expect(last(page, ".end")).to_have_text("Stopped.")
    page.reload()
    assert said(page) == stopped
    expect(last(page, ".end")).to_have_text("Stopped.")


def test_it_scrolls_only_for_those_who_are_at_the_bottom(visits, line):
    line.behave(hold_at=3000)
    page = visits(line.url).page
    page.set_viewport_size({"width": 800, "height": 420})
    at_bottom = """() => {
        const box = document.getElementById("scroll");
        return box.scrollHeight - box.scrollTop - box.clientHeight < 2;
    }"""
    send(page, "\n".join("abcdefghijklmnopqrstuvwxyz"))
    said_so_far(page, "a\nb\nc")
    until(page, at_bottom)
    page.hover("#scroll")
    page.mouse.wheel(0, -4000)
    page.wait_for_selector("#latest")
    line.go.set()
    answered(page, 1)
    assert page.evaluate("document.getElementById('scroll').scrollTop") == 0
    page.click("#latest")
    assert page.evaluate(at_bottom)
    expect(page.locator("#latest")).to_be_hidden()
    page.set_viewport_size(DESKTOP)


# --------------------------------------------------------------------------- the use


def test_examples_are_asked_at_a_click(page):
    examples = texts(page, "#empty li span")
    for i, example in enumerate(examples):
        page.click("#new")
        page.click(f"#empty li:nth-child({i + 1}) button")
        answered(page, 1)
        assert texts(page, ".question .text") == [example]
    assert titles(page) == examples[::-1]


def test_retry_gives_other_answers_and_edit_replaces_the_turn(visit):
    page, bodies = visit.page, visit.bodies
    say(page, "first", "second")
    retry(page)
    assert last(page, ".pager span").text_content() == "2 / 2"
    assert bodies[2]["seed"] != bodies[1]["seed"]
    assert [m["content"] for m in bodies[2]["messages"]] == ["first", "first", "second"]
    page.click("[data-do=older]:visible")
    assert last(page, ".pager span").text_content() == "1 / 2"
    assert last(page, "[data-do=older]").is_disabled()

    page.fill("#question", "a draft")
    edit(page)
    assert page.input_value("#question") == "second"
    assert page.is_visible("#editing")
    page.keyboard.press("Escape")  # changed my mind: the draft is back, the turn is as it was
    assert page.input_value("#question") == "a draft"
    edit(page)
    send(page, "second, but better")
    answered(page, 2)
    assert [m["content"] for m in bodies[3]["messages"]] == ["first", "first", "second, but better"]
    assert said(page) == "second, but better" and page.input_value("#question") == "a draft"
    assert last(page, ".pager").is_hidden()
    assert [turn["question"] for turn in kept(page)[0]["turns"]] == ["first", "second, but better"]


def test_conversations_are_kept_switched_and_deleted(page):
    say(page, "about cats")
    address = page.url
    page.click("#new")
    assert page.url != address and page.locator(".turn").count() == 0
    say(page, "about dogs", "more dogs")
    assert titles(page) == ["about dogs", "about cats"]

    page.reload()  # stays where it was
    assert texts(page, ".question .text") == ["about dogs", "more dogs"]
    page.click("text=about cats")
    assert texts(page, ".question .text") == ["about cats"]
    assert page.url == address and page.title() == "about cats · nanochat"
    page.go_back()
    expect(page.locator(".question .text").first).to_have_text("about dogs")
    page.click("text=about cats")

    page.click("[aria-label='Delete “about cats”']")
    assert titles(page) == ["about dogs"] and page.locator(".turn").count() == 0
    page.click("text=Undo")
    assert titles(page) == ["about dogs", "about cats"] and page.locator(".turn").count() == 1
    page.click("[aria-label='Delete “about cats”']")
    delete_all(page, "no")
    page.click("#delete-all")
    page.keyboard.press("Escape")
    assert titles(page) == ["about dogs"]
    delete_all(page, "yes")
    assert titles(page) == [] and kept(page) == []
    page.reload()
    assert page.is_visible("#empty")


def test_one_conversation_is_answered_while_another_is_read(visits, line):
    line.behave(hold_at=HELD)
    page = visits(line.url).page
    send(page, SENTENCE)
    said_so_far(page, "The")
    page.click("#new")
    assert page.get_attribute("#send", "aria-label") == "Send"
    assert page.is_visible("#saved .pulse")
    line.go.set()
    page.wait_for_selector("#saved .pulse", state="hidden")
    assert page.locator(".turn").count() == 0
    page.click("#saved a")
    assert said(page) == SENTENCE


def test_a_page_left_in_the_middle_keeps_what_was_said(visits, line):
    line.behave(hold_at=HELD)
    page = visits(line.url).page
    send(page, SENTENCE)
    said_so_far(page, "The")
    page.reload()
    assert said(page) and SENTENCE.startswith(said(page))
    assert last(page, ".end").text_content() == "Unfinished."
    assert last(page, ".again").is_visible()


def test_tool_calls_are_folded_and_sent_back_as_they_were(visit):
    page = visit.page
    say(page, "calc: 12/60")
    assert last(page, ".tool summary").text_content().strip() == "12/60 = 0.2"
    assert last(page, ".tool dl").is_hidden()
    page.click(".tool summary")
    assert texts(page, ".tool dd") == ["12/60", "0.2"]
    assert last(page, ".tool dl").is_visible()
    assert texts(page, ".prose") == ["done"]
    say(page, "and now?")
    parts = [{"type": "python", "text": "12/60"}, {"type": "python_output", "text": "0.2"},
             {"type": "text", "text": "done"}]
    assert visit.bodies[1]["messages"][1] == {"role": "assistant", "content": parts}
    assert page.is_visible(".tool dl")  # it stays open while the talk goes on
    page.reload()
    assert texts(page, ".tool summary span") == ["12/60 = 0.2"]


def test_code_is_set_apart_and_stays_text(page):
    say(page, "before\n```html\n<b>bold</b>\n\n  <script>hit()</script>\n```\nafter `x`\n```\nnot closed")
    assert texts(page, ".said code") == ["<b>bold</b>\n\n  <script>hit()</script>", "not closed"]
    assert texts(page, ".said .prose") == ["before", "after `x`"]
    assert texts(page, ".said .code > span") == ["html", ""]


def test_the_oldest_turns_are_left_out_and_it_is_said_once(visit):
    page = visit.page
    notes = page.locator(".dropped:visible")
    context = page.evaluate("keepSetting('max_tokens', 3), state.model.context")
    for n in range(60):
        say(page, f"{n}: {'long ' * (context // 20)}")  # 5 bytes are as many tokens, or fewer
        if notes.count():
            break
    assert n > 0
    say(page, "once more", "and again")
    assert notes.count() == 1 and page.locator(".turn").nth(n).locator(".dropped").is_visible()
    assert all(body["truncation"] == "auto" for body in visit.bodies)
    assert len(visit.bodies[-1]["messages"]) == 2 * len(visit.bodies) - 1  # all are sent: the server knows what fits


def test_the_end_of_an_answer_is_said_when_it_is_no_good_one(page):
    page.evaluate("keepSetting('max_tokens', 3)")
    say(page, SENTENCE)
    assert last(page, ".end").text_content() == "Cut off at max_tokens (see the settings)."
    for detail, words in [("context", "context is full"), ("bos", "another document"), ("stop", ""), ("toString", "")]:
        body = stream(chunk("so far"), chunk("", finish_reason="stop", finish_detail=detail)) + "data: [DONE]\n\n"
        instead(page, content_type="text/event-stream", body=body)
        say(page, "hello")
        assert said(page) == "so far"
        assert words in last(page, ".end").text_content() and last(page, ".end").is_visible() == bool(words)


def test_an_answer_is_copied(visit):
    page = visit.page
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for text, without in [("copy me\n  twice", ""),
                          ("as of old", "Object.defineProperty(navigator, 'clipboard', {value: undefined})")]:
        say(page, text)
        page.evaluate(f"window.theirs = navigator.clipboard; {without}")
        last(page, "[data-do=copy]").click()
        expect(last(page, "[data-do=copy]")).to_have_text("Copied")
        assert page.evaluate("theirs.readText()") == text
    visit.renew()


# --------------------------------------------------------------------------- settings


def test_settings_are_sent_checked_remembered_and_reset(visit):
    page, bodies = visit.page, visit.bodies
    defaults = page.evaluate("state.model.defaults")
    say(page, "with the defaults")
    assert {name: bodies[0][name] for name in defaults} == defaults
    assert bodies[0]["messages"] == [{"role": "user", "content": "with the defaults"}]

    page.click("#open-settings")
    assert {name: float(page.input_value(f"#set-{name}")) for name in defaults} == defaults
    page.fill("#set-temperature", "0,3")
    page.fill("#set-top_k", "12")
    page.fill("#set-seed", "41")
    page.fill("#set-system", "Be brief.")
    for name, wrong in [("temperature", "2.5"), ("temperature", "warm"), ("top_k", "1.5"), ("top_p", "0"),
                        ("top_p", "-1"), ("max_tokens", "0"), ("max_tokens", "1000000"), ("seed", "-3")]:
        good = page.input_value(f"#set-{name}")
        page.fill(f"#set-{name}", wrong)
        assert "must be a" in page.text_content(f"#wrong-{name}") and page.is_visible(f"#wrong-{name}")
        assert page.get_attribute(f"#set-{name}", "aria-invalid") == "true"
        page.fill(f"#set-{name}", good)
        assert page.is_hidden(f"#wrong-{name}")
    page.locator("#settings input[type=range]").nth(2).fill("0.5")  # top_p, by its slider
    assert page.input_value("#set-top_p") == "0.5"
    page.click("#settings >> text=Done")

    page.reload()
    page.wait_for_selector("#model strong")
    say(page, "with mine")
    retry(page)
    mine = {"temperature": 0.3, "top_k": 12, "top_p": 0.5, "max_tokens": defaults["max_tokens"]}
    assert [body | mine == body for body in bodies] == [False, True, True]
    assert [body["seed"] for body in bodies[1:]] == [41, 42]  # another try takes the next, so it can be had again
    assert bodies[1]["messages"][0] == {"role": "system", "content": "Be brief."}
    page.click("#open-settings")
    page.click("#reset")
    assert float(page.input_value("#set-temperature")) == defaults["temperature"]
    page.keyboard.press("Escape")
    say(page, "as before")
    assert {name: bodies[3][name] for name in defaults} == defaults
    assert bodies[3]["messages"][0]["role"] == "user"


def test_the_header_says_what_one_talks_to(page):
    model = page.evaluate("fetch('/v1/models').then((answer) => answer.json())")["data"][0]
    words = page.text_content("#model")
    assert model["id"] in words and f"step {model['step']}" in words and f"context {model['context']}" in words
    assert f"{model['data']} data" in words


def test_the_theme_follows_the_system_until_it_is_chosen(page):
    ground = "getComputedStyle(document.body).backgroundColor"
    colours = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colours.append(page.evaluate(ground))
    light, dark = colours
    assert light != dark
    page.click("#theme")  # from the system's, which is dark, to light
    page.reload()
    assert page.evaluate(ground) == light
    page.click("#theme")
    page.emulate_media(color_scheme="light")
    assert page.evaluate(ground) == dark
    page.click("#theme")
    assert page.evaluate(ground) == light
    assert page.get_attribute("#theme", "aria-label") == "Theme: as the system has it"


# --------------------------------------------------------------------------- troubles


REFUSALS = [
    (429, {"code": "queue_full", "message": "full"}, r"Too many .* Try again in \d+ seconds\."),
    (401, {"message": "no key"}, "wants a key"),
    (403, {"message": "foreign"}, "It said: foreign"),
    (413, {"message": "big"}, "more text than the server takes"),
    (400, {"code": "context_length_exceeded", "message": "x"}, "too long for the model's memory"),
    (400, {"message": "<img src=x onerror=hit()>"}, "It said: <img src=x onerror=hit"),
    (503, {"message": "draining"}, "not ready"),
    (500, None, "Something went wrong in the server"),
]


def test_a_refusal_is_said_in_plain_words_and_the_question_stays(visit):
    page = visit.page
    visit.expected = ("Failed to load resource",)
    for status, error, words in REFUSALS:
        headers = {"Retry-After": "90"} if status == 429 else {}
        instead(page, status=status, headers=headers, body=json.dumps({"error": error}))
        say(page, f"my question, {status}")
        assert re.search(words, last(page, ".trouble p").text_content())
        assert last(page, ".trouble").is_visible()
    page.reload()  # even so
    assert last(page, ".question .text").text_content() == "my question, 500"
    assert page.locator(".trouble button:visible").count() == 1  # only the last can be tried again
    page.unroute_all()
    retry(page)
    assert last(page, ".trouble").is_hidden() and last(page, ".pager").is_hidden()  # a failure is no answer
    assert said(page) == "my question, 500"
    assert len(visit.bodies[-1]["messages"]) == 1  # what was not answered is no turn for the model


def test_no_network_a_broken_line_and_an_error_in_the_stream(visits, line):
    visit = visits(line.url)
    page = visit.page
    visit.expected = ("Failed to load resource", "network error", "ERR_")
    page.route(CHAT, lambda route: route.abort())
    say(page, "one")
    assert "cannot be reached" in last(page, ".trouble p").text_content()
    page.unroute_all()

    line.behave(hold_at=HELD, cut_at=HELD)
    send(page, SENTENCE)
    said_so_far(page, "The")
    line.go.set()
    answered(page, 2)
    assert "broke off" in last(page, ".trouble p").text_content()
    assert said(page) != SENTENCE and SENTENCE.startswith(said(page))

    line.behave()
    for ending in ([{"error": {"message": "worker <b>gone</b>"}}], []):
        instead(page, content_type="text/event-stream", body=stream(chunk("half"), *ending))
        say(page, "three")
        assert "broke off" in last(page, ".trouble p").text_content()
        assert said(page) == "half"
    page.unroute_all()
    retry(page)
    assert said(page) == "three"
    assert last(page, ".pager span").text_content() == "2 / 2"  # what was said before it broke is there still


def test_damaged_storage_is_survived_and_said(page):
    say(page, "a good one")
    good = json.dumps(kept(page)[0])
    damage = {"0" * 16: "{", "1" * 16: "null", "2" * 16: "[]", "3" * 16: '{"title": 5}', "short": good, '"] *': good,
              "4" * 16: good.replace('"parts":', '"ports":'), "5" * 16: good.replace('"text"', '"image"'),
              "6" * 16: good.replace('"shown": 0', '"shown": -1'), "7" * 16: good.replace('"turns":', '"turn":')}
    page.evaluate("""damage => {
        for (const [id, text] of Object.entries(damage)) localStorage.setItem(KEPT + id, text);
        localStorage.setItem(SETTINGS, '{"temperature": "hot", "top_k": [], "seed": {}, "system": 5}');
        localStorage.setItem(THEME, 'constructor');
    }""", damage)
    page.reload()
    assert f"{len(damage)} saved conversations are damaged" in page.text_content("#notice p")
    assert titles(page) == ["a good one"]
    say(page, "it goes on")
    page.evaluate("localStorage.setItem(SETTINGS, 'nonsense')")
    page.reload()
    delete_all(page, "yes")
    assert page.evaluate("keptKeys()") == []


def test_full_and_forbidden_storage_is_survived_and_said(visit):
    page = visit.page
    say(page, "one")
    page.evaluate("""() => {
        for (let size = 1 << 22; size >= 1; size >>= 1) {
            try { for (;;) localStorage.setItem(`filler${size}${localStorage.length}`, "x".repeat(size)); } catch {}
        }
    }""")
    say(page, SENTENCE)
    assert "storage is full" in page.text_content("#notice p")
    assert said(page) == SENTENCE
    page.evaluate("Object.keys(localStorage).forEach((key) => key.startsWith(KEPT) || localStorage.removeItem(key))")
    say(page, "three")  # there is room again: all of it is kept, in one conversation
    assert [len(one["turns"]) for one in kept(page)] == [3]

    page.evaluate("""() => {
        window.theirs = localStorage;
        Object.defineProperty(window, "localStorage", { configurable: true, get() { throw new Error("no"); } });
        loadKept();
        open(null);
    }""")
    say(page, "not kept")
    assert "does not let the page keep anything" in page.text_content("#notice p")
    assert titles(page) == ["not kept", "one"]
    page.evaluate("Object.defineProperty(window, 'localStorage', { value: theirs })")
    visit.renew()


def test_two_tabs_do_not_destroy_each_others_conversations(visits, line):
    line.behave()
    visit = visits(line.url)
    one = visit.page
    say(one, "shared")
    two = visit.open("#" + one.url.split("#")[1])
    one.bring_to_front()
    say(two, "from the second tab")
    answered(one, 2)  # the first sees it at once

    line.behave(hold_at=HELD)
    send(one, SENTENCE)
    said_so_far(one, "The")
    line.hold_at = None
    until(two, "() => document.querySelectorAll('.turn').length === 3")
    say(two, "meanwhile")  # both write the same conversation now
    line.go.set()
    answered(one, 3)
    assert "Yours goes on as a copy" in one.text_content("#notice p")
    questions = [[turn["question"] for turn in conversation["turns"]] for conversation in kept(one)]
    both = ["shared", "from the second tab", SENTENCE]
    assert sorted(questions) == sorted([both, [*both, "meanwhile"]])
    assert titles(one) == ["shared", "shared"]

    delete_all(one, "yes")
    until(two, "() => !state.open")
    assert "deleted in another tab" in two.text_content("#notice p")
    two.close()


# --------------------------------------------------------------------------- text is only ever text


# What the page itself makes in an answer and in the list; anything else there would be the model's.
STRANGE = """() => {
    const ours = {
        "#turns": "div p article h2 button svg use span i details summary dl dt dd pre code",
        "#saved": "h3 ul li a i bdi button svg use",
    };
    const names = "class id dir hidden type title href tabindex disabled open data-do data-kind data-id"
        + " aria-label aria-hidden aria-busy aria-current";
    const strange = [];
    for (const [box, tags] of Object.entries(ours)) {
        for (const element of document.querySelectorAll(`${box} *`)) {
            if (!tags.split(" ").includes(element.localName)) strange.push(element.outerHTML);
            for (const { name, value } of element.attributes) {
                const plain = name !== "href" || /^#(i-[a-z]+|[0-9a-f]{16})$/.test(value);
                if (!names.split(" ").includes(name) || !plain) strange.push(`${name}=${value}`);
            }
        }
    }
    return strange;
}"""


def test_the_watch_sees_what_must_not_be(visit):
    """The tests below are worth what they would notice."""
    for act in ("document.querySelector('#turns').innerHTML = '<img src=x onerror=hit()>'", "hit()", "alert(1)",
                "fetch('http://evil.test/')", "document.body.setAttribute('onclick', 'hit()'); document.body.click()",
                "document.body.append(Object.assign(document.createElement('img'), {src: 'http://evil.test/'}))",
                "console.error('x')"):
        visit.page.evaluate(f"async () => {{ try {{ await ({{async f() {{ {act} }}}}).f(); }} catch {{ }} }}")
        with pytest.raises(AssertionError):
            visit.check()
        visit.page.evaluate("window.hits.length = 0")
        visit.problems = []
    visit.page.evaluate("document.querySelector('#turns').append(document.createElement('img'))")
    assert visit.page.evaluate(STRANGE) == ["<img>"]
    visit.renew()
    visit.problems = []


def test_nothing_that_the_model_says_runs_or_becomes_an_element(page):
    """All of them are asked one after the other, each in a new conversation: so they are titles too."""
    page.evaluate("""texts => {
        for (const text of texts) {
            show(null);
            setField(text);
            document.getElementById("composer").requestSubmit();
        }
    }""", INJECTIONS)
    until(page, "() => state.running.size === 0")
    assert sorted(titles(page)) == sorted(INJECTIONS) and page.evaluate(STRANGE) == []
    found = page.evaluate(f"""() => [...state.conversations.values()].map((conversation) => {{
        show(conversation);
        const text = (selector) => document.querySelector(selector).textContent;
        return [text(".question .text"), text(".said"), ({STRANGE})()];
    }})""")
    assert found == [[text, text, []] for text in INJECTIONS]
    page.click("#saved a >> nth=7")
    edit(page)
    page.reload()
    assert page.evaluate(STRANGE) == []


def test_what_was_put_into_the_storage_does_not_run_either(page):
    say(page, "calc: 1+1")
    whole = kept(page)[0]
    tampered = []
    for text in INJECTIONS:
        parts = [{"type": kind, "text": text, "onclick": "hit()"} for kind in ("text", "python", "python_output")]
        answer = {"parts": parts, "end": text, "dropped": 1, "error": {"text": text, "retryAt": None}}
        turn = {"question": text, "shown": 0, "answers": [answer]}
        tampered.append(json.dumps({**whole, "title": text, "hit": text, "turns": [turn]}))
    page.evaluate("""([whole, texts]) => {
        const id = (i) => i.toString(16).padStart(16, "0");
        whole.forEach((text, i) => localStorage.setItem(KEPT + id(i), text));
        localStorage.setItem(SETTINGS, JSON.stringify({ system: texts.join(" "), temperature: texts[0] }));
    }""", [tampered, INJECTIONS])
    page.reload()
    assert len(titles(page)) == len(INJECTIONS) + 1
    found = page.evaluate(f"""count => [...Array(count).keys()].map(i => {{
        show(state.conversations.get(i.toString(16).padStart(16, "0")));
        const texts = [...document.querySelectorAll(".said p, .said summary, .said dd, .trouble p")];
        return [texts.map(element => element.textContent.trim()), ({STRANGE})()];
    }})""", len(INJECTIONS))
    assert found == [[[text, f"{text} = {text}", text, text, text], []] for text in INJECTIONS]
    page.click("#open-settings")
    assert page.input_value("#set-system") == " ".join(INJECTIONS)


# --------------------------------------------------------------------------- everyone can use it


def violations(page) -> list[str]:
    """All that axe-core finds, of any impact."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page).response["violations"]
    return [f"{one['impact']} {one['id']}: {node['target']} {node['failureSummary']}"
            for one in found for node in one["nodes"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_and_pictures_are_taken(visit, scheme, tmp_path):
    """What is beautiful no assertion knows: the pictures are there to be looked at."""
    page = visit.page
    visit.expected = ("status of 429",)
    page.emulate_media(color_scheme=scheme)
    folder = Path(os.environ.get("NANOCHAT_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)

    def look(name: str) -> None:
        page.screenshot(path=folder / f"{name}-{scheme}.png")
        assert violations(page) == []

    look("desktop-empty")
    if scheme == "light":  # the picture of the README
        say(page, "Who are you?", "What is 77 * 123?", "How many r are in strawberry?")
        page.screenshot(path=folder / "chat.png")
        page.click("#new")
    say(page, "Tell me about the lighthouse keeper.", "calc: 77 * 123",
        "So it is:\n```python\nprint(77 * 123)\n```\nThat is all.")
    page.click(".tool summary")
    instead(page, status=429, headers={"Retry-After": "60"}, body="{}")
    say(page, "too many")
    look("desktop")
    page.click("#open-settings")
    page.fill("#set-temperature", "9")
    look("desktop-settings")
    page.keyboard.press("Escape")
    edit(page)
    page.evaluate("notify('A notice', 'Undo', () => {})")
    page.click("#delete-all")
    look("desktop-delete")
    page.keyboard.press("Escape")
    page.set_viewport_size(PHONE["viewport"])
    page.screenshot(path=folder / f"phone-{scheme}.png")
    page.click("#open-side")
    look("phone-drawer")
    page.set_viewport_size(DESKTOP)


def test_the_keyboard_alone_is_enough(page):
    focused = "document.activeElement.getAttribute('aria-label') || document.activeElement.textContent.trim()"

    def tab_to(name: str) -> None:
        for _ in range(60):
            if page.evaluate(focused) == name:
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline != "none", f"{name}: the focus cannot be seen"
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not reach {name!r}")

    assert page.evaluate("document.activeElement.id") == "question"  # ready to write
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    answered(page, 1)
    assert said(page) == "one\ntwo"
    tab_to("Retry")
    page.keyboard.press("Enter")
    answered(page, 1)
    assert last(page, ".pager span").text_content() == "2 / 2"
    assert page.evaluate("document.activeElement.id") == "question"  # the button is gone, the focus is not
    tab_to("Edit this question")
    page.keyboard.press("Enter")
    page.keyboard.press("Control+A")
    page.keyboard.type("calc: 2*3")
    page.keyboard.press("Enter")
    answered(page, 1)
    tab_to("2*3 = 6")
    page.keyboard.press("Enter")
    assert last(page, ".tool dl").is_visible()
    tab_to("Settings")
    page.keyboard.press("Enter")
    tab_to("Done")
    page.keyboard.press("Enter")
    assert page.evaluate(focused) == "Settings"  # the dialog gives the focus back
    tab_to("Skip to the field to write in")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "question"
    tab_to("New chat")
    page.keyboard.press("Enter")
    page.keyboard.type("next")
    page.keyboard.press("Enter")
    answered(page, 1)
    tab_to("calc: 2*3")
    page.keyboard.press("Enter")
    assert texts(page, ".question .text") == ["calc: 2*3"]
    tab_to("Delete “next”")
    page.keyboard.press("Enter")
    assert titles(page) == ["calc: 2*3"]


def test_enter_that_ends_a_composition_does_not_send(page):
    page.fill("#question", "にほん")
    for how in ("isComposing: true", "keyCode: 229"):
        page.evaluate(f"""document.getElementById("question").dispatchEvent(
            new KeyboardEvent("keydown", {{ key: "Enter", bubbles: true, cancelable: true, {how} }}))""")
    assert page.locator(".turn").count() == 0
    page.press("#question", "Enter")
    answered(page, 1)


def test_a_screen_reader_hears_the_answer_once_it_is_complete(visits, line):
    line.behave(hold_at=HELD)
    page = visits(line.url).page
    page.evaluate("""() => {
        window.heard = [];
        const box = document.getElementById("announce");
        new MutationObserver(() => heard.push(box.textContent)).observe(box, { childList: true });
    }""")
    send(page, SENTENCE)
    said_so_far(page, "The")
    line.go.set()
    answered(page, 1)
    assert page.evaluate("heard") == ["The model is answering.", SENTENCE]


def test_on_a_phone_nothing_is_wider_than_the_screen(visits, server):
    page = visits(server.url, **PHONE).page
    wide = """[...document.querySelectorAll("body *")].filter((element) => !element.closest("pre")
        && element.getBoundingClientRect().right > innerWidth + 0.5).map((element) => element.outerHTML.slice(0, 80))"""
    assert page.evaluate(wide) == []
    say(page, "Averylongword" * 6, "```\n" + "code " * 40 + "\n```", "calc: 1111111111*1111111111")
    page.tap(".tool summary")
    assert page.evaluate(wide) == []
    assert page.evaluate("document.scrollingElement.scrollWidth") == 360

    assert page.is_hidden("#side")
    page.tap("#open-side")
    assert page.is_visible("#side") and page.locator("#room").evaluate("room => room.inert")
    page.keyboard.press("Escape")
    assert page.is_hidden("#side")
    page.tap("#open-side")
    page.touchscreen.tap(350, 300)  # beside the drawer
    page.wait_for_selector("#side", state="hidden")
    page.tap("#open-side")
    page.tap("#saved a")
    assert page.is_hidden("#side")
    assert page.evaluate("document.activeElement.id") != "question"  # else the keyboard would cover what was opened
    page.tap("#open-settings")
    assert page.evaluate(wide) == []
    page.tap("#settings >> text=Done")

    page.set_viewport_size({"width": 360, "height": 330})  # what a keyboard leaves
    page.tap("#question")
    box = page.locator("#composer").bounding_box()
    assert box["y"] > 0 and box["y"] + box["height"] <= 330
