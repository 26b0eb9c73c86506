#!/usr/bin/env python3
"""Whether Grafana's own types know all that is in the dashboard: pip install grafana-foundation-sdk, python3 deploy/grafana/check.py

Grafana forgets what it does not know without a word, a misspelt field too: what goes in is compared with what comes out."""

import json
import pathlib
import sys

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

DASHBOARD = pathlib.Path(__file__).parent / "tidegate.json"


def forgotten(written, known, place="dashboard"):
    """Where something was written that is not known, or known as something else."""
    if isinstance(written, dict) and isinstance(known, dict):
        for name, value in written.items():
            yield from forgotten(value, known.get(name), f"{place}.{name}")
    elif isinstance(written, list) and isinstance(known, list) and len(written) == len(known):
        for index, (value, other) in enumerate(zip(written, known)):
            yield from forgotten(value, other, f"{place}[{index}]")
    elif written != known:
        yield f"{place}: {json.dumps(written)[:80]} is {json.dumps(known)[:80]} to Grafana"


register_default_plugins()
dashboard = json.loads(DASHBOARD.read_text())
found = list(forgotten(dashboard, json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))))
if found:
    sys.exit("\n".join(found))
print(f"Grafana knows all of the {len(dashboard['panels'])} panels")
