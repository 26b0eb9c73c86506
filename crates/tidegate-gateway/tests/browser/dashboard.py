"""The dashboard in a real browser: loads, is live, overrides, refuses, and stays readable.

    dashboard.py TIDEGATE AXE

TIDEGATE is the binary, AXE the file axe.min.js of axe-core.
Nothing here sleeps: each step waits for what it is to bring about.
"""

import http.client
import json
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from playwright.sync_api import expect
from support import OPERATOR, VIEWER, Gateway, Tab, Upstream, browsing

TENANTS = 1000
CONFIG = """
[[upstream]]
name = "openai"
base_url = "{base_url}"
learn_limits = false
[limit.team]
per = ["organization"]
tokens_per_minute = 1000000
[limit.each_user]
per = ["user"]
tokens_per_minute = 2000
[limit.each_model]
per = ["model"]
requests_per_day = 1000000
[limit.each_model.models.full]
requests_per_day = 1
[[alert]]
name = "breaker open"
when = "breaker_open"
"""


def loads_and_lets_nobody_in_without_the_token(tab):
    dialog = tab.page.get_by_role("dialog", name="Admin token")
    expect(dialog).to_be_visible()
    expect(dialog).to_contain_text("in the file admin-token in the gateway's state directory, by default ~/.local/state/tidegate.")
    expect(tab.page.locator("#alerts-empty")).to_be_hidden()
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


def the_first_line_says_whose_calls_a_limit_refuses(tab, gateway):
    title, row = tab.page.locator("#verdict-title"), tab.page.locator("#limits-rows tr", has_text="ada")
    expect(title).to_have_text("Calls are larger than each_user (tokens / min) takes: those of ada.")
    assert gateway.call(tokens=1500, x_tidegate_user="bob") == (200, None)
    for _ in range(5):
        assert gateway.call(tokens=1500, x_tidegate_user="bob", x_tidegate_max_wait="0ms") == (429, "rate_limit_exceeded")
    expect(title).to_contain_text("Calls were refused by each_user (tokens / min): those of bob.")
    expect(tab.page.locator("#verdict-text")).to_contain_text(re.compile(r"\d by a limit, \d by a limit that is smaller than the call"))
    expect(tab.page.locator("#verdict")).to_have_attribute("data-level", "warn")
    expect(tab.page.locator("#limits-count")).to_contain_text("2 refused calls lately")
    expect(row).to_contain_text("refused calls")


def a_call_that_waits_is_named_with_its_limit_and_goes_once_that_is_reset(tab, gateway):
    page, title = tab.page, tab.page.locator("#verdict-title")
    with ThreadPoolExecutor() as callers:
        waiting = callers.submit(gateway.call, tokens=1500, x_tidegate_user="bob", x_tidegate_id="patient")
        expect(title).to_contain_text("Calls are being held back: those of bob by each_user of bob (tokens / min).")
        expect(title).to_contain_text("Calls were refused by each_user (tokens / min): those of bob.")
        expect(page.locator("#queue-rows")).to_contain_text("each_user of bob (tokens / min)")
        expect(page.locator("#queue-classes")).to_contain_text("normal1")
        row = page.locator("#limits-rows tr", has_text="bob")
        expect(row).to_contain_text("holds calls up")
        page.get_by_label("Call id").fill("patient")
        page.get_by_role("button", name="Explain").click()
        expect(page.locator("#why-answer")).to_contain_text("waits")
        row.get_by_role("button", name="Reset").click()
        dialog = page.get_by_role("dialog", name="Reset limit each_user")
        dialog.get_by_label("Reason").fill("bob's deadline")
        dialog.get_by_role("button", name="Reset").click()
        assert waiting.result(timeout=30) == (200, None)
    expect(title).not_to_contain_text("held back")
    expect(page.locator("#queue-empty")).to_be_visible()


def the_charts_draw_what_was_sent(tab, gateway):
    for name, shown in [("attempts", r"attempts [1-9.]"), ("latency", r"first byte p95 [0-9.]+ (µs|ms|s).*overhead p99 [0-9.]+ (µs|ms|s)")]:
        plot = tab.page.locator(f"#chart-{name} .plot")
        with ThreadPoolExecutor() as callers:
            # Until the chart has it: what was sent between two looks is in one of them.
            drawn = callers.submit(lambda: [gateway.call(x_tidegate_user=f"guest-{n % 20}") for n in range(400)])
            expect(plot).to_have_attribute("aria-label", re.compile(shown), timeout=15_000)
            drawn.result()
        painted = plot.locator("canvas").evaluate(
            """(canvas) => {
              const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
              const [red, green, blue] = getComputedStyle(document.documentElement).getPropertyValue("--line-1").match(/\\w\\w/g).map((part) => parseInt(part, 16));
              let pixels = 0;
              for (let at = 0; at < data.length; at += 4) if (Math.abs(data[at] - red) + Math.abs(data[at + 1] - green) + Math.abs(data[at + 2] - blue) < 24 && data[at + 3] > 200) pixels++;
              return pixels;
            }"""
        )
        assert painted > 20, f"{name}: {painted} pixels of its first line"


def a_name_cannot_reorder_the_text_around_it(tab, gateway):
    assert gateway.call(tokens=5000, user="eve\u202egpj")[0] == 429
    first = tab.page.locator("#events-rows li").first
    expect(first).to_contain_text("eve[U+202E]gpj refused: each_user of eve[U+202E]gpj")
    expect(tab.page.locator("body")).not_to_contain_text("\u202e")


def how_long_a_refused_call_waited_is_told_of_the_call(tab):
    told = "(data) => import('/dashboard/views.js').then(({ told }) => told('refused', data))"
    assert tab.page.evaluate(told, {"why": "breaker", "numbers": {"waited_us": 103_000}}) == "refused after 103 ms: its circuit breaker is open."
    assert tab.page.evaluate(told, {"why": "breaker"}) == "refused: its circuit breaker is open."


def a_breaker_is_held_and_let_go_by_keyboard(tab, gateway):
    page, row = tab.page, tab.page.locator("[data-breaker='openai/gpt-4o']")
    row.get_by_role("button", name="Hold open").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Hold open")).to_be_visible()
    expect(page.get_by_label("Reason")).to_be_focused()
    page.keyboard.type("an upstream's incident")
    page.keyboard.press("Enter")
    expect(row.locator(".badge")).to_have_text("forced open")
    expect(row).to_contain_text("forced by olga: an upstream's incident")
    assert gateway.call() == (503, "circuit_open")
    expect(page.locator("#verdict-title")).to_contain_text("openai/gpt-4o is forced open")
    expect(page.locator("#verdict-title")).to_contain_text("Calls were refused by each_user (tokens / min)")
    expect(page.locator("#alerts-rows")).to_contain_text("firing", timeout=15_000)
    row.get_by_role("button", name="Reset").click()
    page.get_by_role("dialog").get_by_role("button", name="Reset").click()
    expect(row.locator(".badge").first).to_have_text("closed")
    expect(row.locator(".history")).to_contain_text("→ forced open")
    assert gateway.call() == (200, None)
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#audit-rows")).to_contain_text("olga: an upstream's incident")


def a_breaker_of_several_accounts_is_one(tab, gateway):
    page, row = tab.page, tab.page.locator("[data-breaker='openai/gpt-4o']")
    for caller in range(4):
        assert gateway.call(authorization=f"Bearer sk-{caller}") == (200, None)
    expect(row).to_have_count(1)
    expect(row).to_contain_text("5 accounts")
    expect(page.locator("#breakers-count")).to_have_text("all closed")
    row.get_by_role("button", name="Hold open").click()
    page.get_by_role("dialog").get_by_role("button", name="Hold open").click()
    expect(row.locator(".history li").first).to_contain_text("closed → forced open × 5")
    expect(page.locator("#breakers-count")).to_have_text("1 not closed")
    expect(page.locator("#verdict-title")).to_contain_text("openai/gpt-4o is forced open")
    expect(page.locator("#verdict-text")).not_to_contain_text("breakers are not closed")
    row.get_by_role("button", name="Reset").click()
    page.get_by_role("dialog").get_by_role("button", name="Reset").click()
    expect(row.locator(".history li").first).to_contain_text("forced open → closed × 5")


def a_viewer_may_look_and_not_touch(browser, gateway):
    tab = Tab(browser, gateway)
    tab.enter(VIEWER)
    tab.is_live()
    page = tab.page
    expect(page.get_by_text("View only")).to_be_visible()
    expect(page.locator("[data-breaker='openai/gpt-4o']")).to_be_visible()
    expect(page.locator("#limits-rows")).to_contain_text("bob")
    for offered in ["Hold open", "Boost", "Reset", "Pause calls"]:
        expect(page.get_by_role("button", name=offered)).to_have_count(0)
    page.get_by_role("button", name="Sign out").click()
    tab.enter(OPERATOR)
    expect(page.get_by_role("button", name="Pause calls")).to_be_visible()
    expect(page.get_by_text("View only")).to_be_hidden()
    assert not tab.complaints, tab.complaints
    tab.context.close()


LONG = "somebodywhosenamehasnoplaceatwhichitwouldbreakbyitself"


def long_names_and_full_limits_fit_too(tab, gateway):
    """As `fits_a_telephone_and_a_wide_screen`, while the names are long, a limit is used up, and a call waits."""
    page = tab.page
    assert gateway.call(tokens=1990, x_tidegate_user=LONG) == (200, None)
    assert gateway.call(tokens=1990, x_tidegate_user=LONG, x_tidegate_max_wait="0ms")[0] == 429
    # Of a day so little flows in that the level stays as it is.
    assert gateway.call(model="full") == (200, None)
    expect(page.locator("#limits-rows tr", has_text="each_model").first).to_contain_text("100 %")
    with ThreadPoolExecutor() as callers:
        waiting = callers.submit(gateway.call, tokens=1990, x_tidegate_user=LONG)
        row = page.locator("#limits-rows tr", has_text=LONG)
        expect(row).to_contain_text("holds calls up")
        expect(row).to_contain_text("refused calls")
        expect(page.locator("#queue-rows")).to_contain_text("anonymous")
        fits_a_telephone_and_a_wide_screen(tab)
        gateway.ask("POST", "/admin/v1/limits/each_user/reset")
        assert waiting.result(timeout=60) == (200, None)


def fits_a_telephone_and_a_wide_screen(tab):
    page = tab.page
    for width, height in [(360, 800), (400, 800), (660, 900), (800, 1200), (1090, 800), (1150, 800), (1280, 800), (1920, 1080), (1440, 900)]:
        page.set_viewport_size({"width": width, "height": height})
        page.evaluate("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
        beyond = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        wide = page.evaluate("[...document.querySelectorAll('body *')].filter((one) => !one.closest('.scroll, .skip') && one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.id || one.className)")
        level = page.locator("#limits-rows tr").first.evaluate("(row) => Math.max(...[...row.querySelectorAll('b, button')].map((one) => one.getBoundingClientRect().right))")
        assert level < width, f"{width} px: how full a level is, and its buttons, are out of sight"
        box = page.locator("#limits .scroll")
        hidden = box.evaluate("(box) => box.scrollWidth - box.clientWidth")
        assert hidden <= 0, f"{width} px: {hidden} px of the limits are cut off"
        assert beyond <= 0 and not wide, f"{width} px: {beyond} px beyond the edge: {wide[:5]}"
        misdrawn = tab.misdrawn()
        assert not misdrawn, f"{width} px: {misdrawn[:5]}"


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
    expect(page.locator("#limits-count")).to_contain_text(re.compile(r"1,0\d\d levels"))
    expect(page.locator("#limits-page")).to_contain_text("1 to 10 of 1,0")
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
    expect(page.locator("#limits-page")).to_contain_text("51 to 60 of 1,0")
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


def numbers_of_records_are_told_in_their_units(tab):
    numbers = {"since_us": 1_796_000_000_000_000, "lasted_us": 2_500_000, "above_ppm": 100_000, "value_ppm": 123_456, "lost": 1200}
    record = {"at": "2026-11-30T00:53:20Z", "kind": "gap", "what": "lost", "numbers": numbers}
    told = json.dumps({"records": [{"sequence": 1, "record": record}], "more": False})
    tab.page.route("**/admin/v1/audit?*", lambda route: route.fulfill(content_type="application/json", body=told))
    tab.page.get_by_role("button", name="Search").click()
    since = tab.page.evaluate("new Date(1_796_000_000_000).toLocaleString('sv-SE')")
    details = tab.page.locator("#audit-rows td").nth(5)
    expect(details).to_have_text(f"since {since}, lasted 2.5 s, above 10 %, value 12.3 %, lost 1,200")
    tab.page.unroute("**/admin/v1/audit?*")


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
    gateway = Gateway(binary, CONFIG.format(base_url=Upstream().base_url))
    with browsing(gateway) as browser:
        tab = Tab(browser, gateway, color_scheme="light")
        axe = Path(axe).read_text()
        for step in [
            lambda: loads_and_lets_nobody_in_without_the_token(tab),
            lambda: shows_a_call_that_is_refused_and_says_why(tab, gateway),
            lambda: what_is_new_comes_first_although_the_focus_is_in_the_list(tab, gateway),
            lambda: the_first_line_says_whose_calls_a_limit_refuses(tab, gateway),
            lambda: a_call_that_waits_is_named_with_its_limit_and_goes_once_that_is_reset(tab, gateway),
            lambda: the_charts_draw_what_was_sent(tab, gateway),
            lambda: a_name_cannot_reorder_the_text_around_it(tab, gateway),
            lambda: how_long_a_refused_call_waited_is_told_of_the_call(tab),
            lambda: a_breaker_is_held_and_let_go_by_keyboard(tab, gateway),
            lambda: a_breaker_of_several_accounts_is_one(tab, gateway),
            lambda: a_viewer_may_look_and_not_touch(browser, gateway),
            lambda: says_why_it_is_not_live(browser, gateway),
            lambda: a_thousand_tenants_stay_readable(tab, gateway),
            lambda: a_boost_from_a_row_is_for_whom_the_row_is(tab, gateway),
            lambda: a_boost_from_a_row_is_for_that_row_whatever_its_name(tab, gateway),
            lambda: numbers_of_records_are_told_in_their_units(tab),
            lambda: everything_is_reached_by_keyboard(tab),
            lambda: fits_a_telephone_and_a_wide_screen(tab),
            lambda: long_names_and_full_limits_fit_too(tab, gateway),
            lambda: tab.accessible(axe, "light"),
            lambda: (tab.page.emulate_media(color_scheme="dark"), tab.accessible(axe, "dark")),
        ]:
            step()
        assert not tab.complaints, tab.complaints
    print("the dashboard is as it should be")


main(*sys.argv[1:])
