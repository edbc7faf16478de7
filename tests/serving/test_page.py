"""The page in a real browser: on the real server, and on one that says what a test wants."""

import asyncio
import json
import re
import shutil
import socket
import threading
import time
import urllib.request
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from playwright.sync_api import expect, sync_playwright

from smallm.serving.page import PATHS, POLICY, add_page
from smallm.serving.settings import ServeSettings

CHROMIUM = shutil.which("chromium")
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
MARKUP = "<img src=x onerror=alert(1)><b>bold</b> & "
LONG = "x" * 300
HEAD = [[1, 0], [0.25, 0.75]]
OPEN = ServeSettings().rules(None).open_paths

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
]


@pytest.fixture(scope="module")
def chromium():
    expect.set_options(timeout=20_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Opens the page of an address; whatever the browser complains of fails the test."""
    opened = []

    def open_page(address, path="", shown="#models li", **options):
        context = chromium.new_context(**options)
        page = context.new_page()
        page.set_default_timeout(20_000)
        seen = SimpleNamespace(address=address, complaints=[], requests=[], context=context)
        page.add_init_script(
            "addEventListener('securitypolicyviolation', (event) =>"
            " console.error(`violation of ${event.effectiveDirective}`))"
        )
        page.on("console", lambda message: _note(seen.complaints, message))
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        page.on("request", lambda request: seen.requests.append(request))
        opened.append(seen)
        page.goto(address + path)
        expect(page.locator(shown).first).to_be_visible()
        return page, seen

    yield open_page
    for seen in opened:
        elsewhere = [r.url for r in seen.requests if not r.url.startswith(seen.address + "/")]
        seen.context.close()
        assert not elsewhere
        assert not seen.complaints


def _note(complaints, message):
    refused = message.text.startswith("Failed to load resource: the server responded")
    if message.type in ("error", "warning") and not refused:  # such answers the page explains
        complaints.append(message.text)


class Scripted:
    """A server with models of a test's making; it keeps what it is asked."""

    def __init__(self):
        self.inside = {}
        self.reset()
        self.api = FastAPI()
        add_page(self.api)
        self.api.middleware("http")(self.guarded)
        self.api.get("/v1/models")(lambda: {"data": self.models})
        self.api.post("/v1/next-words")(self.next_words)
        self.api.post("/v1/completions")(self.completions)
        for path in self.inside:
            self.api.post(f"/v1/{path}")(self.looked_inside(path))

    def reset(self):
        self.models = [model("one", temperature=0.875), model("two")]
        self.words = [("next", 0.5, 0.5), ("other", 0.25, 0.3)]
        self.answer = {"end_of_text": 0.1, "residual": 0.05, "certified": True, "milliseconds": 7}
        self.pieces = ["one", " two"]
        self.delays = {}  # seconds before next words, by prompt
        self.inside |= {  # answers by path
            "attention": {
                "tokens": ["a", MARKUP],
                "layers": 3,
                "heads": [HEAD] * 2,
            },
            "neighbors": {"neighbors": [{"word": MARKUP, "cosine": 0.5}]},
            "word-map": {
                "words": ["left", "right", "also right"],
                "places": [[0, 0], [1, 1], [1, 1]],
                "trustworthiness": {"t-SNE": {"5": 0.9, "15": 0.8}},
            },
            "learning-curves": {
                "trials": 5,
                "groups": [
                    group(MARKUP, "mlp", curve("trial 1"), curve("trial 3")),
                    group("tanh", "mlp", curve("trial 0", champion=True)),
                    group("tanh", "transformer", curve("trial 4")),
                ],
            },
        }
        self.key = None
        self.refusal = None  # a response instead of every answer to a post
        self.asked = []
        self.release = threading.Event()  # a completion waits for it before its last piece
        self.release.set()
        self.left = threading.Event()

    async def guarded(self, request, go_on):
        given = request.headers.get("Authorization")
        closed = request.url.path not in OPEN
        if closed and self.key and given != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "no such key"}}, 401)
        if request.method == "POST" and self.refusal:
            return self.refusal
        return await go_on(request)

    async def next_words(self, request: Request):
        body = await request.json()
        self.asked.append(("next-words", body))
        await asyncio.sleep(self.delays.get(body["prompt"], 0))
        words = [
            {"word": word, "probability": probability, "upper": upper}
            for word, probability, upper in self.words
        ]
        (name,) = body["models"]
        return {"models": {name: {"words": words, **self.answer}}}

    def looked_inside(self, path):
        async def answer(request: Request):
            body = await request.json()
            self.asked.append((path, body))
            found = self.inside[path]
            if isinstance(found, str):
                return JSONResponse({"error": {"message": found}}, 400)
            return {"layer": body.get("layer", 3), **found}

        return answer

    async def completions(self, request: Request):
        body = await request.json()
        self.asked.append(("completions", body))
        return StreamingResponse(self.events(), media_type="text/event-stream")

    async def events(self):
        *first, last = self.pieces
        try:
            for piece in first:
                yield event(piece)
            while not self.release.is_set():
                await asyncio.sleep(0.02)
            yield event(last, "length")
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.left.set()
            raise

    def bodies(self, path):
        return [body for where, body in self.asked if where == path]


def curve(trial, *, champion=False):
    shares = {"dead_units": [0.0, 0.125], "saturated_units": None}
    bits = {"bits_per_byte": [3.0, 2.0], "lowest": [2.9, 1.9], "highest": [3.1, 2.1]}
    return {"trial": trial, "champion": champion, "tokens": [500, 1000], **bits, **shares}


def group(activation, architecture, *curves):
    return {"activation": activation, "architecture": architecture, "curves": curves}


def model(name, **about):
    return {"id": name, "available": True, "kind": "causal", "parameters": 1000, **about}


def event(piece, reason=None):
    choice = {"index": 0, "text": piece, "finish_reason": reason}
    content = piece if isinstance(piece, dict) else {"choices": [choice]}
    return f"data: {json.dumps(content)}\n\n"


@pytest.fixture(scope="module")
def scripted_server():
    found = Scripted()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found.port = probe.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(found.api, host="127.0.0.1", port=found.port, log_level="error")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    found.address = f"http://127.0.0.1:{found.port}"
    yield found
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def scripted(scripted_server):
    scripted_server.reset()
    yield scripted_server
    scripted_server.release.set()


def column(page, name):
    return page.locator(f'article[aria-label="{name}"]')


def prompt_of(page):
    return page.get_by_role("textbox", name="Prompt")


def choice(page, name):
    return page.locator(f'#models input[value="{name}"]')


def words_of(part):
    """The next words of a column, once they are those of the prompt."""
    expect(part.locator(".words")).to_have_attribute("aria-busy", "false")
    return part.locator(".word bdi").all_text_contents()


def as_percent(share):
    return "<0.1%" if share < 0.0005 else f"{100 * share:.1f}%"


def bodies(seen, path):
    return [r.post_data_json for r in seen.requests if r.url.endswith(path)]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/next-words"])
def test_the_page_of_the_interface_sends_what_one_asks_it_to(served, visit, path):
    page, _ = visit(served.address, "/docs", shown=".opblock-summary")
    part = page.locator(".opblock").filter(has=page.locator(f"[data-path='{path}']"))
    part.locator(".opblock-summary-control").click()
    body = part.locator("textarea.body-param__text")
    if path != "/v1/models":
        example = json.loads(body.input_value())
        body.fill(json.dumps(example | {"models": [served.gpt2]}))
    part.get_by_role("button", name="Execute").click()
    answer = part.locator(".live-responses-table .response").first
    expect(answer.locator(".response-col_status")).to_contain_text("200")
    expect(answer.locator(".microlight").first).to_contain_text(served.gpt2)


def test_generating_streams_the_text_that_the_api_gives_for_the_seed(served, visit):
    page, seen = visit(served.address)
    prompt_of(page).fill("The deep model")
    page.get_by_label("Most tokens").fill("12")
    page.get_by_label("Seed").fill("5")
    page.get_by_label("Temperature", exact=True).fill("1.3")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#status")).to_have_text("Done.")
    made = served.client.completions.create(
        model=served.gpt2, prompt="The deep model", max_tokens=12, seed=5, temperature=1.3
    )
    part = column(page, served.gpt2)
    assert part.locator(".given").text_content() == "The deep model"
    assert part.locator(".made").text_content() == made.choices[0].text
    facts = part.locator(".continuation .facts").text_content()
    assert re.match(r"(about )?\d+ tokens in [\d.]+ s · [\d.,]+ tokens/s\n", facts)
    assert facts.endswith("temperature 1.3")
    (body,) = bodies(seen, "/v1/completions")
    assert body["temperature"] == 1.3
    assert body["stream"] is True


def test_masked_and_missing_models_say_what_they_lack(served, visit):
    page, _ = visit(served.address)
    masked = column(page, served.albert)
    assert "cannot continue" in masked.locator(".continuation").text_content()
    assert len(words_of(masked)) == 5
    missing = page.locator("#models li", has_text=served.empty)
    expect(missing.locator("input")).to_be_disabled()
    expect(missing).to_contain_text("unavailable")
    expect(missing).to_contain_text("is no model folder")
    expect(column(page, served.empty)).to_have_count(0)
    choice(page, served.gpt2).uncheck()
    expect(column(page, served.gpt2)).to_be_hidden()
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#status")).to_contain_text("at least one model that can continue")


def test_next_words_are_bars_with_the_probabilities_of_the_api(served, visit):
    page, _ = visit(served.address)
    prompt_of(page).fill("The deep model ")  # white space is left out
    page.get_by_role("spinbutton", name="Next words").fill("4")
    for name in (served.gpt2, served.albert):
        expect(column(page, name).locator(".words li")).to_have_count(4)
    _, answer = served.ask("/v1/next-words", {"prompt": "The deep model", "k": 4})
    longest = max(w["upper"] for each in answer["models"].values() for w in each["words"])
    for name, found in answer["models"].items():
        part = column(page, name)
        assert words_of(part) == [word["word"] for word in found["words"]]
        expected = [as_percent(word["probability"]) for word in found["words"]]
        assert part.locator(".percent").all_text_contents() == expected
        widths = [bar.get_attribute("width") for bar in part.locator(".lower").all()]
        shares = [float(width.rstrip("%")) / 100 for width in widths]
        assert shares == pytest.approx(
            [word["probability"] / longest for word in found["words"]], abs=1e-3
        )
        facts = part.locator(".next .facts").text_content()
        assert re.match(r"[\d.,]+ ms · ", facts)
        assert ("order certain" in facts) == found["certified"]


def test_a_click_on_a_word_appends_it_and_asks_anew(served, visit):
    page, seen = visit(served.address)
    prompt_of(page).fill("The deep model")
    expect(column(page, served.gpt2).locator(".words")).to_have_attribute("aria-busy", "true")
    before = words_of(column(page, served.gpt2))
    column(page, served.gpt2).locator(".word").nth(1).click()
    longer = f"The deep model {before[1]}"
    expect(prompt_of(page)).to_have_value(longer)
    shown = words_of(column(page, served.gpt2))
    _, answer = served.ask("/v1/next-words", {"prompt": longer, "models": [served.gpt2]})
    assert shown == [word["word"] for word in answer["models"][served.gpt2]["words"]]
    assert bodies(seen, "/v1/next-words")[-1]["prompt"] == longer


def test_the_keyboard_is_enough(served, visit):
    page, _ = visit(served.address)
    words_of(column(page, served.gpt2))
    page.keyboard.press("Tab")
    expect(prompt_of(page)).to_be_focused()
    page.keyboard.press("Control+A")
    page.keyboard.type("Neural layers")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#status")).to_have_text("Done.")
    expect(prompt_of(page)).to_be_focused()
    assert column(page, served.gpt2).locator(".given").text_content() == "Neural layers"
    (best, *_) = words_of(column(page, served.gpt2))
    first = column(page, served.gpt2).locator(".word").first
    for _ in range(20):
        page.keyboard.press("Tab")
        outline = page.locator(":focus").evaluate("each => getComputedStyle(each).outlineStyle")
        assert outline != "none"
        if first.evaluate("each => each === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(prompt_of(page)).to_have_value(f"Neural layers {best}")
    words_of(column(page, served.gpt2))
    expect(first).to_be_focused()  # so that the next Enter takes the next word


def test_attention_of_a_layer_and_head_is_that_of_the_api(served, visit):
    page, seen = visit(served.address)
    prompt_of(page).fill("The deep model")
    part = column(page, served.gpt2)
    words_of(part)
    part.get_by_text("Inside the model").click()
    expect(part.locator(".attention .facts")).to_contain_text("Layer 2 of 2, head 1 of 2")
    part.get_by_role("combobox", name="Layer").select_option("1")
    part.get_by_role("button", name="head 2").click()
    expect(part.locator(".attention .facts")).to_contain_text("Layer 1 of 2, head 2 of 2")
    expect(part.get_by_role("button", name="head 2")).to_have_attribute("aria-pressed", "true")
    body = {"model": served.gpt2, "prompt": "The deep model", "layer": 1}
    assert bodies(seen, "/v1/attention")[-1] == body
    _, answer = served.ask("/v1/attention", body)
    weights = [weight for row in answer["heads"][1] for weight in row if weight >= 0.005]
    cells = part.locator(".map .cell")
    shown = cells.evaluate_all("each => each.map((cell) => +cell.getAttribute('fill-opacity'))")
    assert shown == pytest.approx(weights)
    told = cells.first.locator("title").text_content()
    assert told == f"{answer['tokens'][0]} → {answer['tokens'][0]}: {100 * weights[0]:.1f}%"


def test_nearest_words_and_the_map_are_those_of_the_api(served, visit):
    page, _ = visit(served.address)
    part = column(page, served.gpt2)
    part.get_by_text("Inside the model").click()
    part.get_by_role("textbox", name="Word").fill("model")
    part.get_by_role("button", name="Find").click()
    _, answer = served.ask("/v1/neighbors", {"model": served.gpt2, "word": "model", "k": 8})
    expect(part.locator(".near bdi")).to_have_text([w["word"] for w in answer["neighbors"]])
    expect(page.locator(".word-map")).to_have_count(1)  # the masked model has none
    page.get_by_text("Map of the words of").click()
    expect(page.locator(".word-map .facts")).to_contain_text("shuffled 0.")
    _, answer = served.ask("/v1/word-map", {"model": served.gpt2})
    labels = page.locator(".word-map text").all_text_contents()
    assert len(labels) > 10
    assert set(labels) <= set(answer["words"])
    dots = page.locator(".word-map circle").count()
    assert len(labels) + dots == len(answer["words"])
    boxes = page.locator(".word-map text").evaluate_all(
        "each => each.map((label) => label.getBBox()).map((b) => [b.x, b.y, b.width, b.height])"
    )
    for place, (x, y, width, height) in enumerate(boxes):
        for left, top, wide, high in boxes[:place]:
            apart = x > left + wide or left > x + width or y > top + high or top > y + height
            assert apart, (labels[place], x, y)


def test_learning_curves_are_those_of_the_api(served, visit):
    page, _ = visit(served.address)
    expect(page.locator(".learning-curves")).to_have_count(1)
    page.get_by_text("learned").click()
    _, answer = served.ask("/v1/learning-curves", {"model": served.gpt2})
    charts = page.locator(".charts section")
    expect(charts).to_have_count(3)
    for place, name in enumerate(("bits_per_byte", "dead_units", "saturated_units")):
        chart = charts.nth(place)
        shown = chart.locator(".line title").all_text_contents()
        factor = 1 if place == 0 else 100
        expected = [
            f"{curve['trial']}, {group['activation']}: "
            + ", ".join(f"{factor * value:.3f}" for value in curve[name])
            for group in answer["groups"]
            for curve in group["curves"]
        ]
        assert sorted(shown) == sorted(expected)
        expect(chart.locator(".champion title")).to_contain_text("trial 1, gelu")
        assert len(chart.locator("text").all_text_contents()) >= 6  # of both axes
    expect(charts.first.locator(".band")).to_have_count(2)  # of the best of each function
    points = charts.first.locator(".champion polyline").get_attribute("points").split()
    heights = [float(point.split(",")[1]) for point in points]
    assert heights[0] < heights[1]  # bits per byte fall


@pytest.mark.parametrize("size", [{"width": 360, "height": 740}, {"width": 1280, "height": 800}])
def test_nothing_scrolls_sideways(served, scripted, visit, size):
    scripted.models = [model("m" * 80), model("gone", available=False, reason=LONG)]
    scripted.words, scripted.pieces = [(LONG, 0.5, 0.6)], ["a ", LONG]
    for address in (served.address, scripted.address):
        page, _ = visit(address, viewport=size)
        prompt_of(page).fill(f"words {LONG}" if address == scripted.address else "a")
        page.get_by_role("button", name="Generate").click()
        expect(page.locator("#status")).to_have_text("Done.")
        expect(page.locator(".percent").first).to_be_visible()
        closed = page.locator("details:not([open]) > summary")
        while closed.count():
            closed.first.click()
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= size["width"]


def test_the_page_may_load_nothing_from_elsewhere(served, chromium):
    for path in PATHS:
        with urllib.request.urlopen(served.address + path) as answer:
            assert answer.headers["Content-Security-Policy"] == POLICY
    with urllib.request.urlopen(f"{served.address}/favicon.ico") as answer:
        assert answer.headers["Content-Type"] == "image/svg+xml"
    page = chromium.new_page()
    page.goto(served.address)
    refused = page.evaluate(
        """() => new Promise((resolve) => {
          const found = [];
          addEventListener("securitypolicyviolation", (event) => {
            found.push(event.effectiveDirective);
            if (found.length === 3) resolve(found.sort());
          });
          const script = document.createElement("script");
          script.textContent = "document.title = 'run'";
          document.body.append(script);
          document.body.setAttribute("style", "color: red");
          fetch("http://127.0.0.2:9/").catch(() => {});
        })"""
    )
    page.close()
    assert refused == ["connect-src", "script-src-elem", "style-src-attr"]


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_stop_ends_the_stream_on_the_server_too(scripted, visit, way):
    scripted.release.clear()
    page, _ = visit(scripted.address)
    choice(page, "two").uncheck()
    page.get_by_role("button", name="Generate").click()
    made = column(page, "one").locator(".made")
    expect(made).to_have_text("one")  # before the stream ends
    expect(page.locator("#status")).to_have_text("Generating…")
    if way == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press(way)
    expect(page.locator("#status")).to_have_text("Stopped.")
    assert scripted.left.wait(10)
    expect(made).to_have_text("one")
    expect(column(page, "one").locator(".continuation .facts")).to_contain_text("stopped")
    scripted.release.set()
    page.get_by_role("button", name="Generate").click()
    expect(made).to_have_text("one two")


def test_a_new_generation_replaces_one_that_runs(scripted, visit):
    scripted.release.clear()
    page, _ = visit(scripted.address)
    page.get_by_role("button", name="Generate").click()
    expect(column(page, "two").locator(".made")).to_have_text("one")
    prompt_of(page).fill("Other")
    scripted.pieces = ["new", " text"]
    page.keyboard.press("Control+Enter")
    expect(column(page, "two").locator(".made")).to_have_text("new")
    expect(page.locator("#status")).to_have_text("Generating…")  # the older end told nothing
    expect(page.get_by_role("button", name="Stop")).to_have_attribute("aria-disabled", "false")
    scripted.release.set()
    expect(page.locator("#status")).to_have_text("Done.")
    expect(column(page, "two").locator(".made")).to_have_text("new text")
    expect(column(page, "two").locator(".given")).to_have_text("Other")


def test_the_temperature_is_what_is_sent(scripted, visit):
    page, _ = visit(scripted.address)
    slider = page.get_by_label("Temperature, coarsely")
    slider.fill("1.45")
    expect(page.get_by_label("Temperature", exact=True)).to_have_value("1.45")
    sent = generated(page, scripted)
    assert sent == {"one": 1.45, "two": 1.45}
    page.get_by_label("Temperature", exact=True).fill("0")
    expect(slider).to_have_value("0")
    assert generated(page, scripted) == {"one": 0, "two": 0}
    page.get_by_label("fitted").check()
    expect(page.get_by_label("Temperature", exact=True)).to_be_disabled()
    assert generated(page, scripted) == {"one": "fitted", "two": 1}
    facts = [column(page, name).locator(".continuation .facts") for name in ("one", "two")]
    expect(facts[0]).to_contain_text("fitted temperature 0.875")
    expect(facts[1]).to_contain_text("temperature 1, for none is fitted")
    choice(page, "one").uncheck()
    expect(page.get_by_label("fitted")).to_be_disabled()
    expect(page.get_by_label("Temperature", exact=True)).to_be_enabled()


def generated(page, scripted):
    """The temperature sent to each model."""
    scripted.asked.clear()
    page.locator("#status").evaluate("status => { status.textContent = '' }")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#status")).to_have_text("Done.")
    return {body["model"]: body["temperature"] for body in scripted.bodies("completions")}


def test_settings_that_cannot_be_are_not_sent(scripted, visit):
    page, _ = visit(scripted.address, viewport={"width": 360, "height": 740})
    page.locator("#settings summary").click()
    page.get_by_label("Most tokens").fill("0")
    page.locator("#settings summary").click()
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_label("Most tokens")).to_be_visible()  # the browser says what is wrong
    expect(page.locator("#status")).to_be_empty()
    assert not scripted.bodies("completions")


def test_markup_is_shown_as_text(scripted, visit):
    scripted.models = [model(MARKUP), model("gone", available=False, reason=MARKUP)]
    scripted.words = [(MARKUP, 0.5, 0.5)]
    scripted.pieces = [MARKUP, {"error": {"message": MARKUP}}]
    page, _ = visit(scripted.address)
    prompt_of(page).fill(MARKUP)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#status")).to_contain_text("failed")
    for place in (".made", ".given", "h2", ".word bdi", ".continuation .trouble"):
        assert page.locator(f"article {place}").text_content() == MARKUP
    assert MARKUP in page.locator("#models li").nth(1).text_content()
    assert page.locator("img, b").count() == 0


def test_errors_stand_where_they_belong(scripted, visit):
    scripted.pieces = ["some", {"error": {"message": "the model failed"}}]
    page, _ = visit(scripted.address)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#status")).to_have_text("Done, but 2 of 2 failed: see there.")
    part = column(page, "one")
    expect(part.locator(".continuation .trouble")).to_have_text("the model failed")
    expect(part.locator(".made")).to_have_text("some")
    scripted.refusal = JSONResponse({}, 429, {"Retry-After": "12"})
    page.get_by_role("button", name="Generate").click()
    prompt_of(page).fill("Another prompt")
    for place in (".continuation", ".next"):
        expect(part.locator(f"{place} .trouble")).to_have_text(
            "The server is busy: try again in 12 s."
        )
    scripted.refusal = JSONResponse({"error": {"message": "it is too long"}}, 400)
    prompt_of(page).fill("A prompt")
    expect(part.locator(".next .trouble")).to_have_text("it is too long")
    expect(part.locator(".word")).to_have_count(0)
    scripted.refusal = None
    prompt_of(page).fill(" ")
    expect(part.locator(".next .trouble")).to_contain_text("needs at least one word")
    prompt_of(page).fill("A")
    expect(part.locator(".word")).to_have_count(2)
    expect(part.locator(".next .trouble")).to_be_hidden()


def test_a_key_is_asked_for_and_kept_for_the_tab(scripted, visit, chromium):
    scripted.key = "secret"
    page = chromium.new_page()
    page.goto(scripted.address)
    field = page.get_by_label("API key")
    expect(page.locator("#key-note")).to_contain_text("asks for an API key")
    expect(field).to_have_attribute("type", "password")
    field.fill("wrong")
    field.press("Enter")
    expect(page.locator("#key-note")).to_contain_text("does not accept this key")
    field.fill("secret")
    page.get_by_role("button", name="Use this key").click()
    expect(page.locator(".percent")).to_have_count(4)  # it goes on
    expect(field).to_be_hidden()
    scripted.key = "newer"
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#key-note")).to_contain_text("does not accept this key")
    field.fill("newer")
    field.press("Enter")
    expect(page.locator("#status")).to_have_text("Done.")
    expect(column(page, "two").locator(".made")).to_have_text("one two")
    page.reload()
    expect(page.locator(".percent")).to_have_count(4)
    expect(field).to_be_hidden()
    assert page.evaluate("localStorage.length") == 0
    page.close()
    page = chromium.new_page()
    page.goto(scripted.address)
    expect(page.get_by_label("API key")).to_be_visible()
    page.close()


def test_older_answers_are_dropped_and_typing_asks_once(scripted, visit):
    scripted.models = [model("one")]
    page, _ = visit(scripted.address)
    part = column(page, "one")
    words_of(part)
    scripted.delays = {"slow": 1.5}
    prompt_of(page).fill("slow")
    while "slow" not in [body["prompt"] for body in scripted.bodies("next-words")]:
        page.wait_for_timeout(20)
    scripted.asked.clear()
    page.clock.install()
    page.clock.pause_at(datetime.now() + timedelta(hours=1))
    prompt_of(page).fill("")
    prompt_of(page).press_sequentially("quick prompt")
    part.locator(".word").first.click(force=True)  # of the older prompt: it does nothing
    expect(prompt_of(page)).to_have_value("quick prompt")
    page.clock.run_for(399)
    scripted.words = [("fresh", 0.5, 0.5)]
    time.sleep(0.5)
    assert not scripted.asked
    page.clock.run_for(1)
    assert words_of(part) == ["fresh"]
    scripted.words = [("stale", 0.5, 0.5)]
    time.sleep(1.5)
    assert words_of(part) == ["fresh"]
    assert [body["prompt"] for body in scripted.bodies("next-words")] == ["quick prompt"]


def test_an_open_search_shows_what_is_open(scripted, visit):
    scripted.answer |= {"certified": False}
    page, _ = visit(scripted.address)
    part = column(page, "one")
    expect(part.locator(".next .facts")).to_have_text(
        "7 ms · order not certain: 5.0% not searched · end of text 10.0%"
    )
    other = part.get_by_role("button", name="other, between 25.0% and 30.0%")
    expect(other.locator(".lower")).to_have_attribute("width", "50.00%")
    expect(other.locator(".upper")).to_have_attribute("width", "60.00%")


def test_inside_a_model_is_looked_at_only_when_it_is_opened(scripted, visit):
    scripted.models = [model("one", word_map=True, learning_curves=True)]
    page, _ = visit(scripted.address)
    part = column(page, "one")
    words_of(part)
    assert not [path for path, _ in scripted.asked if path in scripted.inside]
    part.get_by_text("Inside the model").click()
    expect(part.locator(".attention .facts")).to_contain_text("Layer 3 of 3, head 1 of 2")
    prompt_of(page).fill("Another prompt")
    words_of(part)
    expect(part.locator(".map text").last).to_have_text(f"{MARKUP[:9]}…")
    assert [body["prompt"] for body in scripted.bodies("attention")][-1] == "Another prompt"
    part.get_by_role("textbox", name="Word").fill("data")
    part.get_by_role("textbox", name="Word").press("Enter")
    expect(part.locator(".near bdi")).to_have_text(MARKUP)
    expect(part.locator(".cosine")).to_have_text("0.50")
    page.get_by_text("Map of the words of one").click()
    expect(page.locator(".word-map text")).to_have_text(["left", "right"])  # no room for both
    expect(page.locator(".word-map circle title")).to_have_text("also right")
    expect(page.locator(".word-map .facts")).to_contain_text("t-SNE 0.90 at 5, 0.80 at 15")
    page.get_by_text("How one learned").click()
    charts = page.locator(".charts section")
    expect(charts.locator("h3")).to_have_text(["Bits per byte, selection slice", "Dead units (%)"])
    expect(charts.first.locator(".line")).to_have_count(4)
    told = "trial 0, tanh, mlp: 3.000, 2.000"
    expect(charts.first.locator(".champion title")).to_have_text(told)
    names = [f"{MARKUP}, mlp", "tanh, mlp", "tanh, transformer"]
    expect(page.locator(".legend bdi")).to_have_text(names)
    looks = page.locator(".legend svg").evaluate_all(
        "all => all.map((one) => one.classList[0] + one.innerHTML.match(/dasharray=.\\d*/)[0])"
    )
    assert len(set(looks)) == 3
    expect(page.locator(".legend .soft").first).to_have_text("2.000 at 1K, 12.5% dead")
    facts = page.locator(".learning-curves .facts")
    expect(facts).to_contain_text(
        "Drawn thickest: trial 0, which became the champion. Not shown: 1 of 5 trials"
    )


def test_what_a_model_lacks_inside_is_told_in_a_line(scripted, visit):
    scripted.models = [model("one", word_map=True, learning_curves=True), model("two")]
    scripted.inside |= dict.fromkeys(scripted.inside, "one: has no attention to draw")
    page, _ = visit(scripted.address)
    part = column(page, "one")
    words_of(part)
    part.get_by_text("Inside the model").click()
    expect(part.locator(".attention .trouble")).to_have_text("one: has no attention to draw")
    expect(part.locator(".shown")).to_be_hidden()
    part.get_by_role("textbox", name="Word").fill("data")
    part.get_by_role("button", name="Find").click()
    expect(part.locator(".near .trouble")).to_have_text("one: has no attention to draw")
    page.get_by_text("Map of the words of one").click()
    expect(page.locator(".word-map .trouble")).to_have_text("one: has no attention to draw")
    page.get_by_text("How one learned").click()
    expect(page.locator(".learning-curves .trouble")).to_have_text("one: has no attention to draw")
    expect(page.locator(".word-map")).to_have_count(1)


def test_models_are_asked_for_again(scripted, visit):
    scripted.models[0] |= {"word_map": True}
    scripted.models[1] |= {"available": False, "reason": "it is still loading"}
    page, _ = visit(scripted.address)
    page.get_by_text("Map of the words of one").click()
    expect(page.locator("#models")).to_contain_text("it is still loading")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#status")).to_have_text("Done.")
    scripted.models[1] = model("two")
    page.get_by_role("button", name="Check again").click()
    assert words_of(column(page, "two")) == ["next", "other"]
    expect(column(page, "one").locator(".made")).to_have_text("one two")
    expect(page.get_by_role("button", name="Check again")).to_be_hidden()
    expect(page.locator(".word-map text").first).to_be_visible()  # what was open stays open


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_contrasts_with_what_is_behind_it(scripted, visit, scheme):
    scripted.pieces = ["some", {"error": {"message": "the model failed"}}]
    page, _ = visit(scripted.address, color_scheme=scheme)
    page.get_by_role("button", name="Generate").click()
    words_of(column(page, "one"))
    expect(page.locator("#status")).to_contain_text("failed")
    found = page.locator("body *").evaluate_all(CONTRASTS)
    assert len(found) > 50
    assert not [each for each in found if each["ratio"] < 4.5]


CONTRASTS = """(elements) => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const parts = numbers(colour).slice(0, 3).map((value) => value / 255);
    const [red, green, blue] = parts.map((value) =>
      value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const behind = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    return numbers(colour)[3] === 0 ? behind(element.parentElement) : colour;
  };
  const ownText = (element) =>
    [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  return elements.filter((element) => element.checkVisibility() && ownText(element))
    .map((element) => {
      const pair = [light(getComputedStyle(element).color), light(behind(element))];
      const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
      return { ratio, text: element.textContent.slice(0, 40), name: element.className };
    });
}"""
