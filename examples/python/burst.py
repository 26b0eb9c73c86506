"""Three minutes' worth of calls within one minute: everybody is served, nobody meets a 429, high goes first.

    cargo run --release -- serve --sim
    python examples/python/burst.py [BASE_URL [CALLS]]

gpt-4o-mini takes 500 requests a minute in the simulator. 500 go at once, then one every 120 ms.
"""

import asyncio
import json
import sys
import time
import urllib.request

import httpx
from openai import AsyncOpenAI

BASE_URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080/v1"
CALLS = int(sys.argv[2]) if len(sys.argv) > 2 else 1500
SIM = sys.argv[3] if len(sys.argv) > 3 else None
RPM = 500
PRIORITIES = ("low", "normal", "high")


async def main():
    limits = httpx.Limits(max_connections=None)
    http = httpx.AsyncClient(limits=limits, timeout=httpx.Timeout(300))
    client = AsyncOpenAI(base_url=BASE_URL, api_key="tidegate", max_retries=0, http_client=http)
    started = time.monotonic()
    ends = {priority: [] for priority in PRIORITIES}
    failed = []

    async def one(number):
        priority = PRIORITIES[number % 3]
        # They arrive over the first half minute.
        await asyncio.sleep(30 * number / CALLS)
        try:
            await client.chat.completions.create(
                model="gpt-4o-mini",
                messages=[{"role": "user", "content": f"call {number}"}],
                max_tokens=5,
                extra_headers={"x-tidegate-priority": priority},
            )
            ends[priority].append(time.monotonic() - started)
        except Exception as error:  # every kind of failure counts alike here
            failed.append(str(error))

    await asyncio.gather(*(one(number) for number in range(CALLS)))
    took = time.monotonic() - started
    ideal = (CALLS - RPM) / RPM * 60
    print(f"{CALLS - len(failed)} of {CALLS} served in {took:.1f} s; the limit allows it in {ideal:.1f} s")
    for priority in reversed(PRIORITIES):
        times = sorted(ends[priority])
        print(f"  {priority:<7} half were done after {times[len(times) // 2]:6.1f} s, the last after {times[-1]:6.1f} s")
    if failed:
        print("first failure:", failed[0])
    refused = 0
    if SIM:
        stats = json.load(urllib.request.urlopen(f"{SIM}/sim/stats"))
        print("the upstream:", json.dumps({key: stats[key] for key in stats if key != "groups"})[:300])
        refused = sum(stats["refused"].values()) if isinstance(stats.get("refused"), dict) else stats.get("refused", 0)
    half = {priority: sorted(times)[len(times) // 2] for priority, times in ends.items()}
    assert not failed, f"{len(failed)} calls failed"
    assert refused == 0, f"the upstream had {refused} 429s to send"
    assert half["high"] < half["normal"] < half["low"], "they go in priority order"
    # One second for the latency of the last call.
    assert took <= ideal / 0.99 + 1.5, f"{took:.1f} s is less than 99 % of the limit"


asyncio.run(main())
