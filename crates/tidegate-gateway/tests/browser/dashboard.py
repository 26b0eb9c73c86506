"""The dashboard in a real browser: loads, is live, overrides, refuses, and stays readable.

    dashboard.py TIDEGATE AXE

TIDEGATE is the binary, AXE the file axe.min.js of axe-core.
Nothing here sleeps: each step waits for what it is to bring about.
"""

import http.client
import http.server
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from hashlib import sha256
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

OPERATOR, VIEWER = "operator-token", "viewer-token"
TENANTS = 1000
CONFIG = """
[[upstream]]
name = "openai"
base_url = "http://127.0.0.1:{port}/v1"
api_key = "env:UPSTREAM_KEY"
learn_limits = false
[limit.team]
per = ["organization"]
tokens_per_minute = 1000000
[limit.each_user]
per = ["user"]
tokens_per_minute = 2000
[[admin]]
name = "olga"
sha256 = "{operator}"
role = "operator"
[[admin]]
name = "vera"
sha256 = "{viewer}"
role = "viewer"
[[alert]]
name = "breaker open"
when = "breaker_open"
"""
REPLY = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello."}}],
        "usage": {"prompt_tokens": 8, "completion_tokens": 12, "total_tokens": 20},
    }
).encode()


class Upstream(http.server.BaseHTTPRequestHandler):
    """Answers every call at once."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(REPLY)))
        self.end_headers()
        self.wfile.write(REPLY)

    def log_message(self, *_):
        pass


class Gateway:
    def __init__(self, binary):
        upstream = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
        threading.Thread(target=upstream.serve_forever, daemon=True).start()
        directory = Path(tempfile.mkdtemp())
        config = directory / "tidegate.toml"
        digest = lambda token: sha256(token.encode()).hexdigest()
        config.write_text(CONFIG.format(port=upstream.server_port, operator=digest(OPERATOR), viewer=digest(VIEWER)))
        command = [binary, "serve", "--config", config, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(
            [*command, "--state-dir", directory / "state"],
            env={"UPSTREAM_KEY": "simulated", "NO_PROXY": "127.0.0.1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        ready = self.process.stdout.readline()
        self.api = re.search(r"api=http://([^/ ]+)", ready).group(1)
        self.admin = re.search(r"admin=(\S+)", ready).group(1)

    def call(self, connection=None, tokens=16, user=None, **headers):
        """One call; its status, and the error's code."""
        connection = connection or http.client.HTTPConnection(self.api, timeout=30)
        body = {"model": "gpt-4o", "max_tokens": tokens, "messages": [{"role": "user", "content": "Hello"}]}
        if user:
            body["user"] = user
        headers = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        reply = connection.getresponse()
        told = json.loads(reply.read())
        return reply.status, told.get("error", {}).get("code")

    def status(self):
        connection = http.client.HTTPConnection(self.admin.removeprefix("http://").rstrip("/"), timeout=30)
        connection.request("GET", "/admin/v1/status", headers={"authorization": f"Bearer {OPERATOR}"})
        return json.load(connection.getresponse())


class Tab:
    """A page, and everything that it complained of."""

    def __init__(self, browser, gateway, **options):
        self.context = browser.new_context(viewport={"width": 1440, "height": 900}, **options)
        self.page = self.context.new_page()
        self.complaints = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self.heard)
        self.page.on("request", lambda request: self.requested(gateway, request.url))
        self.page.goto(gateway.admin)

    def heard(self, message):
        # That an answer is an error is told here too; which ones are meant to be is each step's to say.
        if message.type in ("error", "warning") and "the server responded with a status of 40" not in message.text:
            self.complaints.append(message.text)

    def requested(self, gateway, url):
        if not url.startswith((gateway.admin, "data:")) or OPERATOR in url or VIEWER in url:
            self.complaints.append(f"asks for {url}")

    def enter(self, token):
        self.page.get_by_role("textbox", name="Token").fill(token)
        self.page.get_by_role("button", name="Open the dashboard").click()

    def is_live(self):
        expect(self.page.locator("#link-text")).to_have_text("Live")
        expect(self.page.get_by_role("heading", level=1)).not_to_contain_text("Waiting for")

    def accessible(self, axe, what):
        self.page.evaluate(axe)
        found = self.page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
        told = [f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:200]}" for one in found]
        assert not told, f"{what}:\n" + "\n".join(told)


def loads_and_lets_nobody_in_without_the_token(tab):
    expect(tab.page.get_by_role("dialog", name="Admin token")).to_be_visible()
    tab.enter("wrong")
    expect(tab.page.get_by_role("alert")).to_contain_text("not known here")
    tab.enter(OPERATOR)
    tab.is_live()
    expect(tab.page.locator("#verdict-title")).to_have_text("Nothing is being held back.")
    tab.page.reload()
    tab.is_live()


def shows_a_call_that_is_refused_and_says_why(tab, gateway):
    assert gateway.call(x_tidegate_user="ada") == (200, None)
    assert gateway.call(tokens=5000, x_tidegate_user="ada", x_tidegate_id="too-much")[0] == 429
    events = tab.page.locator("#events-rows")
    expect(events).to_contain_text("too-much")
    tab.page.get_by_label("Filter by call").fill("nobody")
    expect(events).not_to_contain_text("too-much")
    tab.page.get_by_label("Filter by call").fill("too-much")
    events.get_by_role("button", name="too-much").first.click()
    expect(tab.page.locator("#why-answer")).to_contain_text("too large for a limit")
    expect(tab.page.locator("#why-answer tbody")).to_contain_text("each_user")
    tab.page.get_by_label("Filter by call").fill("")


def what_is_new_comes_first_although_the_focus_is_in_the_list(tab, gateway):
    page, rows = tab.page, tab.page.locator("#events-rows li")
    of_call = page.get_by_role("button", name="too-much").first
    of_call.click()
    page.mouse.move(0, 0)
    for call in ["too-much-again", "too-much-once-more"]:
        assert gateway.call(tokens=5000, x_tidegate_user="ada", x_tidegate_id=call)[0] == 429
        expect(rows.first).to_contain_text(call)
    shown = page.evaluate("[...document.querySelectorAll('#events-rows button')].map((one) => one.textContent)")
    assert shown[:3] == ["too-much-once-more", "too-much-again", "too-much"], shown
    assert page.evaluate("document.activeElement.textContent") == "too-much"


def a_name_cannot_reorder_the_text_around_it(tab, gateway):
    assert gateway.call(tokens=5000, user="eve\u202egpj")[0] == 429
    first = tab.page.locator("#events-rows li").first
    expect(first).to_contain_text("eve[U+202E]gpj refused: each_user of eve[U+202E]gpj")
    expect(tab.page.locator("body")).not_to_contain_text("\u202e")


def a_breaker_is_held_and_let_go_by_keyboard(tab, gateway):
    page, row = tab.page, tab.page.locator("[data-breaker='openai/gpt-4o']")
    row.get_by_role("button", name="Hold open").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Hold open")).to_be_visible()
    expect(page.get_by_label("Reason")).to_be_focused()
    page.keyboard.type("an upstream's incident")
    page.keyboard.press("Enter")
    expect(row.locator(".badge")).to_have_text("forced open")
    assert gateway.call() == (503, "circuit_open")
    expect(page.locator("#verdict-title")).to_contain_text("openai/gpt-4o is forced open")
    expect(page.locator("#alerts-rows")).to_contain_text("firing", timeout=15_000)
    row.get_by_role("button", name="Reset").click()
    page.get_by_role("dialog").get_by_role("button", name="Reset").click()
    expect(row.locator(".badge").first).to_have_text("closed")
    expect(row.locator(".history")).to_contain_text("→ forced open")
    assert gateway.call() == (200, None)
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#audit-rows")).to_contain_text("olga: an upstream's incident")


def a_viewer_may_look_and_not_touch(browser, gateway):
    tab = Tab(browser, gateway)
    tab.enter(VIEWER)
    tab.is_live()
    row = tab.page.locator("[data-breaker='openai/gpt-4o']")
    row.get_by_role("button", name="Hold open").click()
    tab.page.get_by_role("dialog").get_by_role("button", name="Hold open").click()
    expect(tab.page.locator("#act-error")).to_contain_text("use an operator's token")
    assert gateway.call() == (200, None)
    tab.page.get_by_role("button", name="Cancel").click()
    assert not tab.complaints, tab.complaints
    tab.context.close()


def says_why_it_is_not_live(browser, gateway):
    tab = Tab(browser, gateway)
    told = json.dumps({"error": {"message": "tidegate: too many wrong tokens were shown. Please try again in 6s."}})
    tab.page.route("**/admin/v1/events", lambda route: route.fulfill(status=429, content_type="application/json", body=told))
    tab.enter(VIEWER)
    expect(tab.page.locator("#link-text")).to_have_text("Connection lost")
    expect(tab.page.locator("#lost")).to_have_text("Not live: too many wrong tokens were shown. Please try again in 6s.")
    tab.page.unroute("**/admin/v1/events")
    tab.is_live()
    expect(tab.page.locator("#lost")).to_be_hidden()
    tab.context.close()


def a_thousand_tenants_stay_readable(tab, gateway):
    def some(of):
        connection = http.client.HTTPConnection(gateway.api, timeout=30)
        for user in of:
            assert gateway.call(connection, x_tidegate_user=f"user-{user}", tokens=50 + user) == (200, None)

    crowd = [threading.Thread(target=some, args=(range(part, TENANTS, 4),)) for part in range(4)]
    [one.start() for one in crowd]
    [one.join() for one in crowd]
    page = tab.page
    expect(page.locator("#limits-count")).to_contain_text(re.compile(r"1,00\d levels"))
    expect(page.locator("#limits-page")).to_contain_text("1 to 10 of 1,00")
    rows = page.locator("#limits-rows tr")
    assert rows.count() == 10
    nodes = page.evaluate("document.querySelectorAll('*').length")
    assert nodes < 2500, f"{nodes} elements"
    page.get_by_label("Search limits and keys").fill("user-777")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("user-777")
    page.get_by_label("Search limits and keys").fill("")
    for _ in range(5):
        page.locator("#limits-after").click()
    expect(page.locator("#limits-page")).to_contain_text("51 to 60 of 1,00")
    expect(rows).to_have_count(10)
    for _ in range(5):
        page.locator("#limits-before").click()


def a_boost_from_a_row_is_for_whom_the_row_is(tab, gateway):
    page, dialog = tab.page, tab.page.get_by_role("dialog", name="Boost limit each_user")
    page.get_by_label("Search limits and keys").fill("user-777")
    row = page.locator("#limits-rows tr", has_text="user-777")
    row.get_by_role("button", name="Boost").click()
    only = dialog.get_by_label("Only where")
    expect(only).to_have_value("user=user-777")
    expect(dialog).to_contain_text("only where user=user-777")
    dialog.get_by_role("button", name="Boost").click()
    expect(row).to_contain_text("× 1.5", timeout=15_000)
    raised = [level["key"] for level in gateway.status()["limits"] if "boost" in level]
    assert raised == ["user-777"], raised
    page.get_by_label("Search limits and keys").fill("")


def a_boost_from_a_row_is_for_that_row_whatever_its_name(tab, gateway):
    page, dialog = tab.page, tab.page.get_by_role("dialog", name="Boost limit each_user")
    only, search = dialog.get_by_label("Only where"), page.get_by_label("Search limits and keys")
    for name, shown in [("odd/a=b, c", '"odd/a=b, c"'), ('"odd" d', '"\\"odd\\" d"'), ("odd/e", "odd/e"), ("odd/ef", None)]:
        assert gateway.call(user=name)[0] == 200
        if not shown:
            continue
        search.fill(name)
        row = page.locator("#limits-rows tr", has_text=name)
        row.get_by_role("button", name="Boost").click()
        expect(only).to_have_value(f"user={shown}")
        dialog.get_by_role("button", name="Boost").click()
        expect(row).to_contain_text("× 1.5", timeout=15_000)
    raised = {level["key"] for level in gateway.status()["limits"] if "boost" in level}
    assert raised == {"user-777", "odd/a=b, c", '"odd" d', "odd/e"}, raised
    row.get_by_role("button", name="Boost").click()
    only.fill("user=odd, everybody")
    expect(dialog).not_to_contain_text("where * stands")
    dialog.get_by_role("button", name="Boost").click()
    expect(dialog.get_by_role("alert")).to_contain_text("“everybody” cannot be read")
    only.fill("user=odd*")
    expect(dialog).to_contain_text("only where user=odd*, where * stands for anything")
    dialog.get_by_role("button", name="Cancel").click()
    search.fill("")


def everything_is_reached_by_keyboard(tab):
    page = tab.page
    page.reload()
    tab.is_live()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    wanted = {"pause", "theme", "leave", "limits-search", "limits-reset", "events-search", "events-kind", "events-hold", "why-call", "audit-since"}
    seen = set()
    for _ in range(150):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id"))
        if wanted <= seen:
            return
    raise AssertionError(f"not reached: {wanted - seen}")


def main(binary, axe):
    gateway = Gateway(binary)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            tab = Tab(browser, gateway, color_scheme="light")
            axe = Path(axe).read_text()
            for step in [
                lambda: loads_and_lets_nobody_in_without_the_token(tab),
                lambda: shows_a_call_that_is_refused_and_says_why(tab, gateway),
                lambda: what_is_new_comes_first_although_the_focus_is_in_the_list(tab, gateway),
                lambda: a_name_cannot_reorder_the_text_around_it(tab, gateway),
                lambda: a_breaker_is_held_and_let_go_by_keyboard(tab, gateway),
                lambda: a_viewer_may_look_and_not_touch(browser, gateway),
                lambda: says_why_it_is_not_live(browser, gateway),
                lambda: a_thousand_tenants_stay_readable(tab, gateway),
                lambda: a_boost_from_a_row_is_for_whom_the_row_is(tab, gateway),
                lambda: a_boost_from_a_row_is_for_that_row_whatever_its_name(tab, gateway),
                lambda: everything_is_reached_by_keyboard(tab),
                lambda: tab.accessible(axe, "light"),
                lambda: (tab.page.emulate_media(color_scheme="dark"), tab.accessible(axe, "dark")),
            ]:
                step()
            assert not tab.complaints, tab.complaints
            browser.close()
    finally:
        gateway.process.terminate()
        gateway.process.wait()
    print("the dashboard is as it should be")


main(*sys.argv[1:])
