"""The page at / in a browser without a network: what a reader sees, whatever a text or a model says."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

EVIL = '</script><img src=x onerror="alert(1)"><b>'


@pytest.fixture(scope="module")
def visit(server):
    """visit(work, *contexts) → what `work(page)` returns in each context, by default one, with everything that the page
    asked for and complained of."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[dev]'")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium, such as Debian's package chromium")

    def run(work, *contexts):
        found, asked, said = [], [], []
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            for options in contexts or ({},):
                page = browser.new_context(**options).new_page()
                page.on("request", lambda request: asked.append(request.url))
                page.on("console", lambda message: said.append(message.text))
                page.on("pageerror", lambda error: said.append(str(error)))
                page.on("dialog", lambda dialog: said.append(dialog.message))
                page.goto(f"http://127.0.0.1:{server.port}/")
                page.wait_for_selector("[role=tab]")
                found.append(work(page))
            browser.close()
        return found, asked, said

    def in_a_thread(work, *contexts):  # the driver's event loop would stay in this one
        with ThreadPoolExecutor(1) as threads:
            return threads.submit(run, work, *contexts).result()

    return in_a_thread


def tried(page, model, tab, **values):
    """Chooses a model and a tab, fills in the fields, runs by the keyboard, and returns the text of the result."""
    page.select_option("#model", model)
    page.click(f"#tab-{tab}")
    for name, value in values.items():
        page.fill(f"#field-{name}", value)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#status:has-text(' ms'), #status.wrong")
    return page.inner_text("#result")


def test_every_kind_of_answer_is_shown_and_nothing_is_loaded(visit, server):
    def work(page):
        text = f"a b {EVIL} good"
        seen = {"classes": tried(page, "sst2", "predict", text=text)}
        seen["bars"] = page.locator(".bars .track").count()
        tried(page, "several: ner", "predict", text="\U0001f600 good a b")
        seen["entities"] = page.locator(".text mark").evaluate_all("all => all.map(x => x.firstChild.data)")
        tried(page, "several: squad", "predict", question="a b", context=f"c \U0001f600 d {EVIL} e f good")
        seen["answer"] = page.locator(".text mark").evaluate_all("all => all.map(x => x.firstChild.data)")
        page.locator(".text small").evaluate("x => x.remove()")
        seen["context"] = page.inner_text(".text")
        seen["masks"] = tried(page, "mlm", "fill", text=f"a [MASK] {EVIL}")
        seen["near"] = tried(page, "mlm", "near", text="a b", others=f"c\n{EVIL}")
        seen["score"] = tried(page, "mlm", "score", text=f"a b\n{EVIL}")
        seen["tokens"] = tried(page, "mlm", "tokens", text=EVIL)
        seen["written"] = tried(page, "writer", "generate", text=text)
        seen["elements"] = page.locator("#result img, #result b").count()
        tried(page, "mlm", "attention", text=f"a {EVIL}")
        frame = page.frame_locator("iframe")
        frame.locator("button.head").nth(3).click()
        seen["caption"] = frame.locator("#attention-caption").inner_text()
        seen["lines"] = frame.locator("#attention-view line").count()
        return seen

    [seen], asked, said = visit(work)
    assert {url.split("/")[2] for url in asked if not url.startswith("data:")} == {f"127.0.0.1:{server.port}"}
    assert not said
    assert seen["bars"] == 3 and any(label in seen["classes"] for label in ("bad", "fair", "good"))
    rows = [{"question": "a b", "context": f"c \U0001f600 d {EVIL} e f good"}]
    answer = server.post("/predict", {"model": "several", "task_name": "squad", "inputs": rows}).body[0]["answer"]
    assert [one.strip() for one in seen["answer"]] == [answer] and EVIL in seen["context"]
    entities = server.post(
        "/predict", {"model": "several", "task_name": "ner", "inputs": ["\U0001f600 good a b"]}
    ).body[0]["entities"]
    assert seen["entities"] == [entity["text"] for entity in entities] and entities
    assert EVIL in seen["masks"] and EVIL in seen["near"] and EVIL in seen["score"]
    assert "[CLS]" in seen["tokens"] and seen["written"].strip() and seen["elements"] == 0
    assert seen["caption"].startswith("Layer 2, head 2") and seen["lines"] > 0


def test_mistakes_are_said_and_the_keyboard_is_enough(visit):
    def work(page):
        wrong = tried(page, "mlm", "fill", text="no mask") or page.inner_text("#status.wrong")
        page.focus("#tab-fill")
        page.keyboard.press("ArrowRight")
        chosen = page.get_attribute("[role=tab][aria-selected=true]", "id")
        page.keyboard.press("Tab")
        return wrong, chosen, page.evaluate("document.activeElement.id")

    [(wrong, chosen, focused)], _, _ = visit(work)
    assert "no [MASK] in 'no mask'" in wrong
    assert (chosen, focused) == ("tab-near", "field-text")


def test_it_follows_the_screen(visit):
    def work(page):
        page.select_option("#model", "mlm")
        width = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return page.evaluate("getComputedStyle(document.body).backgroundColor"), width

    size = {"width": 360, "height": 700}
    [light, dark], _, _ = visit(work, *({"color_scheme": scheme, "viewport": size} for scheme in ("light", "dark")))
    assert light == ("rgb(255, 255, 255)", 0) and dark == ("rgb(20, 24, 29)", 0)


def test_the_headers_forbid_what_the_page_does_not_need(server):
    for path in ("/", "/docs"):
        headers = server.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0] and "unsafe-eval" not in policy
        assert headers["x-content-type-options"] == "nosniff" and "access-control-allow-origin" not in headers
