"""Takes the pictures of docs/dashboard.md, of a gateway before the simulator with five teams and more work than one of them may have.

    pictures.py TIDEGATE DIRECTORY

TIDEGATE is the binary, of a release build: what a call costs is in the pictures. DIRECTORY is where they go: docs/images.
Takes a minute and a half, the time that the charts need to have something to show.
"""

import http.client
import json
import random
import sys
import threading
from hashlib import sha256
from pathlib import Path

from playwright.sync_api import expect
from support import OPERATOR, Gateway, Tab, browsing

TEAMS = ["acme", "globex", "initech", "umbrella", "hooli"]
CONFIG = """
[limit.team]
per = ["organization"]
requests_per_minute = 600
tokens_per_minute = 60000
[limit.each_user]
per = ["user"]
requests_per_minute = 60
[limit.company]
tokens_per_minute = 400000
[[alert]]
name = "much is refused"
when = "rate_limited"
above = 0.05
for = "10s"
[[alert]]
name = "breaker open"
when = "breaker_open"
"""
KEY = """
[[key]]
name = "{team}-app"
sha256 = "{digest}"
organization = "{team}"
"""
key_of = lambda team: f"tg-{team}-0123456789abcdef0123"

# Team, user, model, tokens, seconds between calls, priority, patience.
CALM = [("globex", f"user-{n}", "gpt-4o-mini", 100, 0.8, "normal", "60s") for n in range(8)]
CALM += [("initech", f"dev-{n}", "gpt-4.1", 200, 1, "high", "60s") for n in range(4)]
CALM += [(team, f"{team}-{n}", "gpt-4o-mini", 150, 2, "normal", "60s") for team in ["umbrella", "hooli"] for n in range(2)]
BATCH = [("acme", f"batch-{n}", "gpt-4o", 1200, 0.05, "low", "60s") for n in range(25)]
HASTY = [("umbrella", f"hasty-{n % 3}", "gpt-4o", 20, 0.3, "normal", "0ms") for n in range(6)]


class Callers:
    """Threads that call until the block ends."""

    def __init__(self, api, crowd):
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.call, args=(api, *one), daemon=True) for one in crowd]

    def __enter__(self):
        [thread.start() for thread in self.threads]

    def __exit__(self, *_):
        self.over.set()

    def call(self, api, team, user, model, tokens, pause, priority, patience):
        body = json.dumps({"model": model, "max_tokens": tokens, "messages": [{"role": "user", "content": "Hello"}]})
        headers = {"content-type": "application/json", "authorization": f"Bearer {key_of(team)}"}
        headers |= {"x-tidegate-user": user, "x-tidegate-priority": priority, "x-tidegate-max-wait": patience}
        while not self.over.wait(random.uniform(0.5, 1.5) * pause):
            connection = http.client.HTTPConnection(api, timeout=60)
            try:
                connection.request("POST", "/v1/chat/completions", body, headers)
                connection.getresponse().read()
            except (OSError, http.client.HTTPException):
                # The gateway may end before a call does.
                if not self.over.is_set():
                    raise
            connection.close()


def opened(browser, gateway, theme):
    tab = Tab(browser, gateway, color_scheme=theme)
    tab.page.set_viewport_size({"width": 1440, "height": 1000})
    tab.enter(OPERATOR)
    tab.is_live()
    return tab.page


def held_back(browser, gateway, directory):
    page = opened(browser, gateway, "light")
    with Callers(gateway.api, CALM + BATCH):
        page.wait_for_timeout(45_000)
        expect(page.locator("#verdict-title")).to_contain_text("those of acme by team of acme")
        page.screenshot(path=directory / "dashboard-light.png")
        page.locator("#events-rows li", has_text="waited").first.locator(".link").click()
        expect(page.locator("#why-answer table")).to_be_visible()
        page.evaluate("document.getElementById('events').scrollIntoView({ behavior: 'instant' })")
        page.screenshot(path=directory / "dashboard-why.png")


def refused(browser, gateway, directory):
    page = opened(browser, gateway, "dark")
    with Callers(gateway.api, CALM + HASTY):
        page.wait_for_timeout(40_000)
        page.locator("[data-breaker='sim/gpt-4.1']").get_by_role("button", name="Hold open").click()
        page.get_by_label("Reason").fill("their status page says so")
        page.get_by_role("dialog").get_by_role("button", name="Hold open").click()
        expect(page.locator("#verdict-title")).to_contain_text("sim/gpt-4.1 is forced open")
        expect(page.locator("#toasts p")).to_have_count(0, timeout=10_000)
        page.screenshot(path=directory / "dashboard-dark.png")


def main(binary, directory):
    keys = "".join(KEY.format(team=team, digest=sha256(key_of(team).encode()).hexdigest()) for team in TEAMS)
    gateway = Gateway(binary, CONFIG + keys, "--sim")
    with browsing(gateway) as browser:
        held_back(browser, gateway, Path(directory))
        refused(browser, gateway, Path(directory))


main(*sys.argv[1:])
