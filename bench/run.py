"""The same job by three clients under limits of five kinds; prints a table. Run by run.sh.

All go at once, each against a simulator of its own: they wait more than they work.
"""

import asyncio
import json
import os
import pathlib
import subprocess
import sys

RPM, TPM, FILL = 600, 90_000, 0.1
CALLS = 900
CONCURRENCY = 64
REPLY_SECONDS = 0.4  # the median reply: 300 ms, and 20 tokens at 200 a second
LATENCY = '[latency]\nfirst_token = "300ms"\ntokens_per_second = 200.0\n[output]\nmedian = 20\nmax = 40\n'
MODEL = f"[model.m]\nrpm = {RPM}\ntpm = {TPM}\ninitial_fill = {FILL}\n"
SCENARIOS = {
    # name: (scenario, limits that are given, share of the limit that is there)
    "plain": (LATENCY + MODEL, (RPM, TPM), 1.0),
    "enforced by the second": (LATENCY + MODEL + 'quantum = "1s"\n', (RPM, TPM), 1.0),
    "no headers": ("headers = false\n" + LATENCY + MODEL, (RPM, TPM), 1.0),
    "others take 40 %": (LATENCY + MODEL + '[[tenant]]\nmodel = "m"\nshare = 0.4\n', (RPM, TPM), 0.6),
    "limits given twice too high": (LATENCY + MODEL, (2 * RPM, 2 * TPM), 1.0),
}


def chars(number):
    return 1200 if number % 5 == 0 else 200


def body(number):
    message = {"role": "user", "content": "x" * chars(number)}
    return {"model": "m", "messages": [message], "max_completion_tokens": 40}


def least_seconds(share, quantum):
    """What the limits allow: the bucket at first, then the refill, over what the job costs; and the last reply."""
    tokens = sum(-(-chars(number) // 4) + 2 for number in range(CALLS))
    full = 0 if quantum else 1
    requests = (CALLS - full * FILL * RPM) / (RPM / 60 * share)
    return max(requests, (tokens - full * FILL * TPM) / (TPM / 60 * share)) + REPLY_SECONDS


async def all_calls(call):
    """A plain loop: so many at once, each tried as its client tries."""
    places = asyncio.Semaphore(CONCURRENCY)

    async def one(number):
        async with places:
            try:
                await call(body(number))
                return 0
            except Exception:
                return 1

    return sum(await asyncio.gather(*(one(number) for number in range(CALLS))))


async def by_sdk(url):
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=url, api_key="any")
    return await all_calls(lambda body: client.chat.completions.create(**body))


async def by_litellm(url, rpm, tpm):
    import litellm

    litellm.suppress_debug_info = True
    params = {"model": "openai/m", "api_base": url, "api_key": "any", "rpm": rpm, "tpm": tpm}
    router = litellm.Router(model_list=[{"model_name": "m", "litellm_params": params}], num_retries=5)
    return await all_calls(lambda body: router.acompletion(**body))


def start_simulator(binary, folder, scenario):
    folder.mkdir(parents=True)
    (folder / "scenario.toml").write_text(scenario)
    command = [binary, "sim", "--listen", "127.0.0.1:0", "--scenario", folder / "scenario.toml"]
    command += ["--request-log", folder / "log"]
    simulator = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return simulator, simulator.stdout.readline().split("api=")[1].strip()


def command_of(client, binary, folder, url, given):
    rpm, tpm = map(str, given)
    if client == "tidegate run":
        lines = (json.dumps(body(number)) + "\n" for number in range(CALLS))
        (folder / "in.jsonl").write_text("".join(lines))
        command = [binary, "run", folder / "in.jsonl", "-o", folder / "out.jsonl", "--upstream", url, "--json"]
        return command + ["--rpm", rpm, "--tpm", tpm]
    return [sys.executable, __file__, "--client", client, url, rpm, tpm]


def main(binary, work):
    going = []
    for name, (scenario, given, share) in SCENARIOS.items():
        for client in ["tidegate run", "SDK loop", "LiteLLM Router"]:
            folder = pathlib.Path(work) / name.replace(" ", "-") / client.replace(" ", "-")
            simulator, url = start_simulator(binary, folder, scenario)
            command = command_of(client, binary, folder, url, given)
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            going.append((name, share, client, folder, simulator, process))
    print("| limits | client | seconds | × the least | 429s | failed |\n|---|---|---|---|---|---|")
    for name, share, client, folder, simulator, process in going:
        said = json.loads(process.communicate()[0].strip().splitlines()[-1])
        simulator.terminate()
        simulator.wait()
        log = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
        took = max(entry["finished_s"] for entry in log) - min(entry["received_s"] for entry in log)
        met = sum(entry["status"] == 429 for entry in log)
        ratio = took / least_seconds(share, "second" in name)
        # Whoever left calls undone has no time that could be compared.
        ratio = f"{ratio:.3f}" if said["failed"] == 0 else "–"
        print(f"| {name} | {client} | {took:.1f} | {ratio} | {met} | {said['failed']} of {CALLS} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--client":
        client, url, rpm, tpm = sys.argv[2:]
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        going = by_sdk(url) if client == "SDK loop" else by_litellm(url, int(rpm), int(tpm))
        print(json.dumps({"failed": asyncio.run(going)}))
    else:
        main(sys.argv[1], sys.argv[2])
