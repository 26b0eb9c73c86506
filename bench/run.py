"""The same job by three clients under limits of seven kinds; prints a table. Run by run.sh.

All go at once, each against a simulator of its own: they wait more than they work. A third argument is the simulators'
seed, on which depends when others call and how long replies take.
"""

import asyncio
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import urllib.request

RPM, TPM, FILL = 600, 90_000, 0.1
CALLS = 900
CONCURRENCY = 64
REPLY_SECONDS = 0.4  # the median reply: 300 ms, and 20 tokens at 200 a second
LATENCY = '[latency]\nfirst_token = "300ms"\ntokens_per_second = 200.0\n[output]\nmedian = 20\nmax = 40\n'


@dataclasses.dataclass
class Limits:
    """How one of the simulators limits, and what its clients are told of that."""

    before: str = ""  # of the whole scenario
    more: str = ""  # of its model and what follows
    tpm: int = TPM
    given: float | None = 1.0  # times what is true; None: nothing is
    at_first: float = FILL  # share of a minute that may go at once

    def scenario(self):
        model = f"[model.m]\nrpm = {RPM}\ntpm = {self.tpm}\ninitial_fill = {FILL}\n"
        return self.before + LATENCY + model + self.more

    def flags(self):
        return [] if self.given is None else [str(int(RPM * self.given)), str(int(self.tpm * self.given))]

    def least_seconds(self, tokens, others):
        """What they allow: the bucket at first, then the refill without what `others` took of it each second, over what the
        job cost; and the last reply."""
        costs = {"requests": (CALLS, RPM), "tokens": (tokens, self.tpm)}
        least = ((cost - self.at_first * limit) / (limit / 60 - others[name]) for name, (cost, limit) in costs.items())
        return max(least) + REPLY_SECONDS


ALL_LIMITS = {
    "plain": Limits(),
    "nothing given": Limits(given=None),
    "given twice too high": Limits(given=2.0),
    "enforced by the second": Limits(more='quantum = "1s"\n', at_first=1 / 60),
    "no headers": Limits(before="headers = false\n"),
    "charges input + max": Limits(more='charge = "input_plus_max"\n', tpm=60_000),
    "others take 40 %": Limits(more='[[tenant]]\nmodel = "m"\nshare = 0.4\n'),
}


def chars(number):
    return 1200 if number % 5 == 0 else 200


def body(number):
    message = {"role": "user", "content": "x" * chars(number)}
    return {"model": "m", "messages": [message], "max_completion_tokens": 40}


def taken_by_others(url, began):
    """Units a second, by dimension, since `began` on the simulator's clock."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/sim/stats") as reply:
        stats = json.load(reply)
    seconds = stats["elapsed_s"] - began
    return {name: level["tenants"] / seconds for name, level in stats["groups"]["m"]["levels"].items()}


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


async def by_litellm(url, given):
    import litellm

    litellm.suppress_debug_info = True
    params = {"model": "openai/m", "api_base": url, "api_key": "any"} | given
    router = litellm.Router(model_list=[{"model_name": "m", "litellm_params": params}], num_retries=5)
    return await all_calls(lambda body: router.acompletion(**body))


def start_simulator(binary, folder, scenario, seed):
    folder.mkdir(parents=True)
    (folder / "scenario.toml").write_text(scenario)
    command = [binary, "sim", "--listen", "127.0.0.1:0", "--scenario", folder / "scenario.toml"]
    command += ["--request-log", folder / "log", "--seed", seed]
    simulator = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return simulator, simulator.stdout.readline().split("api=")[1].strip()


def command_of(client, binary, folder, url, flags):
    if client == "tidegate run":
        lines = (json.dumps(body(number)) + "\n" for number in range(CALLS))
        (folder / "in.jsonl").write_text("".join(lines))
        command = [binary, "run", folder / "in.jsonl", "-o", folder / "out.jsonl", "--upstream", url, "--json"]
        return command + [word for pair in zip(["--rpm", "--tpm"], flags) for word in pair]
    return [sys.executable, __file__, "--client", client, url, *flags]


def main(binary, work, seed="1"):
    # A thread for each job: others go on calling after its end, so the simulator is asked at once.
    with concurrent.futures.ThreadPoolExecutor(max_workers=3 * len(ALL_LIMITS)) as pool:
        rows = []
        for name, limits in ALL_LIMITS.items():
            for client in ["tidegate run", "SDK loop", "LiteLLM Router"]:
                folder = pathlib.Path(work) / name.replace(" ", "-") / client.replace(" ", "-")
                simulator, url = start_simulator(binary, folder, limits.scenario(), seed)
                command = command_of(client, binary, folder, url, limits.flags())
                process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                rows.append(pool.submit(result, name, client, limits, folder, url, simulator, process))
        print("| limits | client | seconds | × the least | 429s | failed |\n|---|---|---|---|---|---|")
        for row in rows:
            print(row.result(), flush=True)


def result(name, client, limits, folder, url, simulator, process):
    """Waits for the end of one job; its row."""
    said = json.loads(process.communicate()[0].strip().splitlines()[-1])
    log = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
    began = min(entry["received_s"] for entry in log)
    took = max(entry["finished_s"] for entry in log) - began
    met = sum(entry["status"] == 429 for entry in log)
    tokens = sum(entry["charge"]["tokens"] for entry in log if entry["admitted"])
    ratio = took / limits.least_seconds(tokens, taken_by_others(url, began))
    simulator.terminate()
    simulator.wait()
    # Whoever left calls undone has no time that could be compared.
    ratio = f"{ratio:.3f}" if said["failed"] == 0 else "–"
    return f"| {name} | {client} | {took:.1f} | {ratio} | {met} | {said['failed']} of {CALLS} |"


if __name__ == "__main__":
    if sys.argv[1] == "--client":
        client, url, *flags = sys.argv[2:]
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        given = dict(zip(["rpm", "tpm"], map(int, flags)))
        going = by_sdk(url) if client == "SDK loop" else by_litellm(url, given)
        print(json.dumps({"failed": asyncio.run(going)}))
    else:
        main(*sys.argv[1:])
