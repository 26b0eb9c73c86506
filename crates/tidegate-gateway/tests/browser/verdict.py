"""The dashboard's first line: in every situation true, and with whose and by what.

    verdict.py TIDEGATE
"""

import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from playwright.sync_api import expect
from support import OPERATOR, Gateway, Tab, Upstream, browsing

CONFIG = """
[[upstream]]
name = "openai"
base_url = "{openai}"
learn_limits = false
[[upstream]]
name = "spare"
base_url = "{spare}"
api_key = "env:SPARE_KEY"
models = ["gpt-4.1"]
fallback = true
[retry]
base_delay = "10ms"
[breaker]
failure_threshold = 2
recovery_timeout = "300s"
[limit.each_model]
per = ["model"]
max_in_flight = 1
[limit.each_model.models."gpt-*"]
max_in_flight = 1000
[limit.each_model.models."o3*"]
max_in_flight = 1000
[limit.each_user]
per = ["user"]
requests_per_minute = 100
[limit.each_user.users.mallory]
requests_per_minute = "blocked"
"""


def calls_that_different_limits_hold_are_told_with_theirs(tab, gateway, upstream):
    release = threading.Event()
    upstream.holding.update({"held-a": release, "held-b": release})
    with ThreadPoolExecutor() as callers:
        try:
            under_way = [callers.submit(gateway.call, model=model, x_tidegate_user="first") for model in ["held-a", "held-b"]]
            expect(tab.page.locator("#tiles")).to_contain_text("In flight2")
            waiting = [callers.submit(gateway.call, model=model, x_tidegate_user=user) for model, user in [("held-a", "ada"), ("held-b", "bob"), ("held-b", "bob")]]
            expect(tab.title).to_have_text(
                "Calls are being held back: those of bob by each_model of held-b (in flight); those of ada by each_model of held-a (in flight)."
            )
            # A limit that has room is not blamed.
            assert gateway.call(model="held-a", x_tidegate_user="cy", x_tidegate_max_wait="0ms")[0] == 429
            expect(tab.title).to_contain_text("Calls were refused by each_model of held-a (in flight): those of cy.")
        finally:
            release.set()
        assert {call.result() for call in under_way + waiting} == {(200, None)}
    expect(tab.title).not_to_contain_text("held back")


def what_is_kept_for_higher_priorities_is_told_to_who_waits_for_it(tab, gateway):
    assert gateway.call(x_tidegate_user="ned", x_tidegate_priority="high") == (200, None)
    for _ in range(49):
        assert gateway.call(x_tidegate_user="ned", x_tidegate_priority="low") == (200, None)
    with ThreadPoolExecutor() as callers:
        # Meanwhile one or the other may have flowed in.
        waiting = [callers.submit(gateway.call, x_tidegate_user="ned", x_tidegate_priority="low") for _ in range(3)]
        expect(tab.title).to_contain_text(
            "Calls are being held back: those of ned by each_user of ned (requests / min), of which 50 are kept for higher priorities."
        )
        expect(tab.page.locator("#limits-rows")).to_contain_text("50 of 100 requests / min kept for higher priorities")
        assert {call.result() for call in waiting} == {(200, None)}
    expect(tab.title).not_to_contain_text("held back")


def a_limit_that_lets_nothing_through_says_so(tab, gateway):
    assert gateway.call(x_tidegate_user="mallory")[0] == 429
    expect(tab.title).to_contain_text("Calls were refused by each_user (requests / min), which lets nothing through: those of mallory.")


def calls_that_wait_to_be_sent_again_are_told_with_what_failed(tab, gateway, upstream):
    upstream.failing["o3"] = (503, {"retry-after": "4"})
    with ThreadPoolExecutor() as callers:
        call = callers.submit(gateway.call, model="o3", x_tidegate_user="dan")
        expect(tab.title).to_contain_text(re.compile(r"Calls wait to be sent again: those of \S+, as openai/o3 failed"))
        expect(tab.page.locator("#tiles")).to_contain_text("1 to retry")
        expect(tab.page.locator("#queue-rows")).to_contain_text("openai/o3 failed")
        del upstream.failing["o3"]
        assert call.result() == (200, None)
    expect(tab.title).not_to_contain_text("sent again")


def a_breaker_that_opens_by_itself_is_told_with_whose_calls_it_refuses(tab, gateway, upstream):
    upstream.failing["o3-mini"] = (500, {})
    gateway.call(model="o3-mini", x_tidegate_user="eve")
    expect(tab.page.locator("[data-breaker='openai/o3-mini'] .badge")).to_have_text("open")
    expect(tab.page.locator("[data-breaker='openai/o3-mini'] .history")).to_contain_text("closed → open")
    assert gateway.call(model="o3-mini", x_tidegate_user="kim") == (503, "circuit_open")
    expect(tab.title).to_contain_text("Calls were refused as openai/o3-mini is open: ")
    expect(tab.page.locator("#verdict")).to_have_attribute("data-level", "bad")


def a_breaker_whose_calls_go_elsewhere_refuses_nobody(tab, gateway, upstream):
    upstream.failing["gpt-4.1"] = (500, {})
    for _ in range(3):
        assert gateway.call(model="gpt-4.1") == (200, None)
    expect(tab.title).to_contain_text("openai/gpt-4.1 is open.")
    expect(tab.title).not_to_contain_text("refused as openai/gpt-4.1")
    expect(tab.page.locator("#events-rows")).to_contain_text("not served by openai/gpt-4.1 (breaker); goes on at spare/gpt-4.1")


def of_a_crowd_no_more_are_counted_than_are_told_apart(tab, gateway):
    def some(part):
        for user in range(part, 300, 4):
            for _ in range(2):
                gateway.call(model="o3-mini", x_tidegate_user=f"crowd-{user}")

    with ThreadPoolExecutor() as callers:
        list(callers.map(some, range(4)))
    expect(tab.title).to_contain_text(re.compile(r"Calls were refused as openai/o3-mini is open: those of \S+ and (more than )?\d+ others\."))


def the_gateways_clock_counts(browser, gateway):
    for minutes in [-5, 5]:
        tab = Tab(browser, gateway, script=f"const now = Date.now; Date.now = () => now() + {minutes} * 60000;")
        tab.enter(OPERATOR)
        assert gateway.call(model="o3-mini", x_tidegate_user="kim") == (503, "circuit_open")
        expect(tab.title).to_contain_text("Calls were refused as openai/o3-mini is open: ")
        tab.context.close()


def what_was_refused_before_the_page_was_opened_is_told_and_in_every_tab_the_same(browser, binary, upstream):
    gateway = Gateway(binary, CONFIG.format(openai=upstream.base_url, spare=upstream.base_url))
    for _ in range(38):
        assert gateway.call(x_tidegate_user="mallory")[0] == 429
    tabs = [Tab(browser, gateway) for _ in range(2)]
    for tab in tabs:
        tab.enter(OPERATOR)
        # The gateway is younger than a minute, and says so.
        expect(tab.page.locator("#tiles")).to_contain_text(re.compile(r"Calls[0-9.]+/s last \d+ sRefused38 last \d+ sRetries0 last \d+ s429s met0 last \d+ s"))
        expect(tab.page.locator("#verdict-text")).to_have_text(re.compile(r"^Refused within the last (\d+ s|minute): 38 by a limit that is smaller than the call, or lets nothing through\.$"))
        expect(tab.title).to_have_text("Calls were refused by each_user (requests / min), which lets nothing through: those of mallory.")
        # These the page sees from when it is opened on.
        expect(tab.page.locator("#tiles")).to_contain_text(re.compile(r"Overhead, p99\S+( µs| ms| s)? last \d+ s|Overhead, p99– last \d+ s"))
    for tab in tabs:
        assert not tab.complaints, tab.complaints
        tab.context.close()
    gateway.stop()


def a_gateway_that_is_started_again_is_found_again(tab, gateway):
    api, admin = gateway.api, gateway.admin.removeprefix("http://").rstrip("/")
    gateway.stop()
    expect(tab.page.locator("#link-text")).to_have_text("Connection lost")
    last_known = re.compile(r"^Connection lost: what follows is what was last known, at \d\d:\d\d:\d\d\.$")
    expect(tab.title).to_have_text(last_known)
    expect(tab.page.locator("#verdict-text")).to_contain_text("openai/o3-mini is open")
    expect(tab.page.locator("#verdict")).to_have_attribute("data-level", "lost")
    # What it complains of now is that nobody answers.
    tab.complaints.clear()
    gateway.start(api, admin)
    tab.is_live()
    expect(tab.title).not_to_contain_text("last known")
    assert gateway.call(x_tidegate_user="mallory")[0] == 429
    expect(tab.title).to_contain_text("those of mallory")


def of_many_limits_two_are_told_and_the_others_counted(browser, binary, upstream):
    gateway = Gateway(binary, CONFIG.format(openai=upstream.base_url, spare=upstream.base_url))
    release = threading.Event()
    models = [f"crowded-{n}" for n in range(6)]
    upstream.holding.update(dict.fromkeys(models, release))
    tab = Tab(browser, gateway)
    tab.enter(OPERATOR)
    tab.is_live()
    with ThreadPoolExecutor(20) as callers:
        try:
            under_way = [callers.submit(gateway.call, model=model, x_tidegate_user="first") for model in models]
            expect(tab.page.locator("#tiles")).to_contain_text("In flight6")
            for model in models[:4]:
                assert gateway.call(model=model, x_tidegate_user="cy", x_tidegate_max_wait="0ms")[0] == 429
            by = r"by each_model of crowded-\d \(in flight\): those of cy"
            expect(tab.title).to_have_text(re.compile(rf"^Calls were refused {by}; {by}\. 2 other limits refused calls\.$"))
            waiting = [callers.submit(gateway.call, model=model, x_tidegate_user="dee") for model in models]
            expect(tab.title).to_have_text(
                re.compile(
                    r"^Calls are being held back: those of dee by each_model of crowded-\d \(in flight\)\. "
                    rf"Calls were refused {by}\. [45] other limits hold calls back or refused some\.$"
                )
            )
        finally:
            release.set()
        assert {call.result() for call in under_way + waiting} == {(200, None)}
    assert not tab.complaints, tab.complaints
    tab.context.close()
    gateway.stop()


def a_trail_that_is_not_written_is_told_with_why(browser, binary, upstream):
    for on_failure, level in [("continue", "warn"), ("refuse", "bad")]:
        audit = f'[audit]\npath = "/nonexistent/x/audit.db"\non_failure = "{on_failure}"\n'
        gateway = Gateway(binary, CONFIG.format(openai=upstream.base_url, spare=upstream.base_url) + audit)
        try:
            tab = Tab(browser, gateway)
            tab.enter(OPERATOR)
            end = "; calls are refused until it is" if on_failure == "refuse" else ""
            expect(tab.title).to_have_text(re.compile(rf"^The audit trail is not being written: [^;]+{end}\.$"))
            expect(tab.page.locator("#verdict")).to_have_attribute("data-level", level)
            tab.context.close()
        finally:
            gateway.stop()


def main(binary):
    openai, spare = Upstream(), Upstream()
    gateway = Gateway(binary, CONFIG.format(openai=openai.base_url, spare=spare.base_url))
    with browsing(gateway) as browser:
        tab = Tab(browser, gateway)
        tab.enter(OPERATOR)
        tab.is_live()
        calls_that_different_limits_hold_are_told_with_theirs(tab, gateway, openai)
        what_is_kept_for_higher_priorities_is_told_to_who_waits_for_it(tab, gateway)
        a_limit_that_lets_nothing_through_says_so(tab, gateway)
        calls_that_wait_to_be_sent_again_are_told_with_what_failed(tab, gateway, openai)
        a_breaker_that_opens_by_itself_is_told_with_whose_calls_it_refuses(tab, gateway, openai)
        a_breaker_whose_calls_go_elsewhere_refuses_nobody(tab, gateway, openai)
        of_a_crowd_no_more_are_counted_than_are_told_apart(tab, gateway)
        the_gateways_clock_counts(browser, gateway)
        of_many_limits_two_are_told_and_the_others_counted(browser, binary, openai)
        what_was_refused_before_the_page_was_opened_is_told_and_in_every_tab_the_same(browser, binary, openai)
        a_trail_that_is_not_written_is_told_with_why(browser, binary, openai)
        assert not tab.complaints, tab.complaints
        a_gateway_that_is_started_again_is_found_again(tab, gateway)
    print("the first line says what is")


main(*sys.argv[1:])
