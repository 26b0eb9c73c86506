"""Three minutes' worth of calls within half a minute: everybody is served, and nobody meets a 429.

    cargo run --release -- serve --sim
    python examples/python/burst.py             # or: … burst.py BASE_URL mixed|alike [SIMULATOR_URL]

gpt-4o-mini and gpt-4.1 each take 500 requests a minute in the simulator: 500 go at once, then one every 120 ms.
`alike`: all calls have the same priority. `mixed`: a third each are low, normal and high, and go in that order. Either way the
limit is used up to its edge, unless the high ones come so slowly that they never need the half of the bucket that is kept for
them (docs/decisions/004-the-reserve.md): then it is still there in the end.
"""

import asyncio
import json
import sys
import time
import urllib.request

import httpx
from openai import AsyncOpenAI

BASE_URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080/v1"
MIXED = sys.argv[2:3] != ["alike"]
SIMULATOR = sys.argv[3] if len(sys.argv) > 3 else None
MODEL = "gpt-4o-mini" if MIXED else "gpt-4.1"
CALLS, RPM, ARRIVE_WITHIN = 1500, 500, 20
POOLS = 25
PRIORITIES = ("low", "normal", "high") if MIXED else ("normal",)


def upstream():
    """What the simulator counted for the model: its 429s, and the refill that found the bucket full."""
    if not SIMULATOR:
        return 0, 0.0
    group = json.load(urllib.request.urlopen(f"{SIMULATOR}/sim/stats"))["groups"].get(MODEL, {})
    return group.get("refused", 0), group.get("levels", {}).get("requests", {}).get("lost", 0.0)


async def main():
    came = []

    async def note_that_it_came(_request):
        came.append(time.monotonic() - started)
        if len(came) == CALLS:
            print(f"all {CALLS} calls have come after {came[-1]:.1f} s", flush=True)

    def client():
        http = httpx.AsyncClient(
            limits=httpx.Limits(max_connections=None),
            timeout=httpx.Timeout(300),
            event_hooks={"request": [note_that_it_came]},
        )
        return AsyncOpenAI(base_url=BASE_URL, api_key="tidegate", max_retries=0, http_client=http)

    # With a thousand connections in one of its pools httpx itself is what calls wait for.
    clients = [client() for _ in range(POOLS)]
    refused_before, lost_before = upstream()
    started = time.monotonic()
    ends = {priority: [] for priority in PRIORITIES}
    failed = []

    async def one(number):
        priority = PRIORITIES[number % len(PRIORITIES)]
        await asyncio.sleep(ARRIVE_WITHIN * number / CALLS)
        try:
            await clients[number % POOLS].chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": f"call {number}"}],
                max_tokens=5,
                extra_headers={"x-tidegate-priority": priority},
            )
            ends[priority].append(time.monotonic() - started)
        except Exception as error:  # every kind of failure counts alike here
            failed.append(str(error))

    await asyncio.gather(*(one(number) for number in range(CALLS)))
    took = time.monotonic() - started
    bucket = RPM
    # They took no more than what flowed in, and half of what is kept for them.
    if MIXED and CALLS / len(PRIORITIES) < RPM / 60 * came[-1] + RPM / 4:
        print("the high ones came too slowly to need what is kept for them, half of the bucket")
        bucket = RPM / 2
    ideal = (CALLS - bucket) / RPM * 60
    print(f"{CALLS - len(failed)} of {CALLS} served in {took:.1f} s; the limit allows it in {ideal:.1f} s")
    for priority in reversed(PRIORITIES):
        times = sorted(ends[priority])
        print(f"  {priority:<7} half were done after {times[len(times) // 2]:6.1f} s, the last after {times[-1]:6.1f} s")
    if failed:
        print("first failure:", failed[0])
    refused, lost = (after - before for after, before in zip(upstream(), (refused_before, lost_before)))
    used = CALLS / (bucket + RPM / 60 * took)
    print(f"  {used:.1%} of what was there was used")
    if SIMULATOR:
        print(f"  {refused} 429s upstream; refill lost at a full bucket: {lost:.1f} calls")
    assert not failed, f"{len(failed)} calls failed"
    assert refused == 0, f"the upstream had {refused} 429s to send"
    # Nothing flowed over while there was work, but for the first moments, when the limit was not yet known.
    assert lost <= 0.01 * CALLS, f"{lost} calls' worth of refill was lost"
    if MIXED:
        half = {priority: sorted(times)[len(times) // 2] for priority, times in ends.items()}
        assert half["high"] < half["normal"] < half["low"], "they go in priority order"
    # One second and a half for the latency of the last call.
    assert took <= ideal / 0.99 + 1.5, f"{took:.1f} s: less than 99 % of the limit was used"


asyncio.run(main())
