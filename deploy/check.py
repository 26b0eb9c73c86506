#!/usr/bin/env python3
"""Asks a running Prometheus that scrapes tidegate whether it has its calls, and whether it can answer every query of the dashboard and
every rule: python3 deploy/check.py http://127.0.0.1:9090

With --all as well: that every query has something to show, and the rule on breakers fires. That takes calls of every fate, from which
one breaker stays open; ./test makes them."""

import json
import math
import pathlib
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

PATIENCE_SECONDS = 60
DASHBOARD = pathlib.Path(__file__).parent / "grafana" / "tidegate.json"


def ask(base, path, **parameters):
    url = f"{base}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            return json.load(reply)["data"]
    except urllib.error.HTTPError as error:
        if error.code == 503:
            return None  # It is starting.
        sys.exit(f"{parameters}: {json.load(error)['error']}")
    except urllib.error.URLError:
        return None  # It does not listen yet.


def until(what, look):
    """Looks again and again until there is something."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not (found := look()):
        if time.monotonic() > give_up_at:
            sys.exit(f"no {what} within {PATIENCE_SECONDS} s")
        time.sleep(0.1)
    return found


def values(base, query):
    data = ask(base, "query", query=query)
    return data["result"] if data else []


def has_numbers(base, query):
    return any(not math.isnan(float(series["value"][1])) for series in values(base, query))


def rules(base):
    """All rules, once each of them has been evaluated."""
    data = ask(base, "rules")
    found = [rule for group in data["groups"] for rule in group["rules"]] if data else []
    return found if found and all(rule["health"] != "unknown" for rule in found) else []


def firing(base):
    return [rule["name"] for rule in rules(base) if rule["state"] == "firing"]


def queries(dashboard):
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"].replace("$__rate_interval", "1m").replace("$job", "tidegate").replace("$instance", ".*")
            yield panel["title"], query


def main(base, wants_all):
    calls = until("calls", lambda: values(base, "sum(tidegate_calls_total) > 0"))
    print(f"{calls[0]['value'][1]} calls are known to Prometheus")
    for rule in until("rules", lambda: rules(base)):
        if rule["health"] != "ok":
            sys.exit(f"rule {rule['name']}: {rule['lastError']}")
    if not wants_all and firing(base):
        sys.exit(f"{firing(base)} fire although nothing is wrong")
    answered = 0
    for title, query in queries(json.loads(DASHBOARD.read_text())):
        if "$" in re.sub(r'"[^"]*"', "", query):
            sys.exit(f"{title}: a variable is left in {query}")
        if wants_all:
            until(f'numbers for "{title}": {query}', lambda: has_numbers(base, query))
        answered += bool(values(base, query))
    print(f"it answers every query of the dashboard, {answered} of them with values")
    if wants_all:
        until("firing of TidegateBreakerOpen", lambda: "TidegateBreakerOpen" in firing(base))


main(sys.argv[1].rstrip("/"), "--all" in sys.argv[2:])
