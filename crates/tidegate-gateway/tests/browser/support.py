"""A gateway before upstreams that do what a test wants, and its dashboard in a browser."""

import http.client
import http.server
import json
import re
import shutil
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

OPERATOR, VIEWER = "operator-token", "viewer-token"
ADMINS = "".join(
    f'[[admin]]\nname = "{name}"\nsha256 = "{sha256(token.encode()).hexdigest()}"\nrole = "{role}"\n'
    for name, token, role in [("olga", OPERATOR, "operator"), ("vera", VIEWER, "viewer")]
)

#: What is drawn over what stands in another cell of its row; and numbers and names in more than one line that are one word.
MISDRAWN = """() => {
  const found = [];
  const boxes = (node) => {
    const range = document.createRange();
    range.selectNodeContents(node);
    return [...range.getClientRects()].filter(({ width, height }) => width > 1 && height > 1);
  };
  for (const row of document.querySelectorAll("#limits tbody tr, #learned tbody tr, #queue tbody tr")) {
    const parts = [];
    const texts = document.createTreeWalker(row, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const [node, text] = [texts.currentNode, texts.currentNode.data.trim()];
      if (!text) continue;
      const rects = boxes(node);
      const cell = node.parentElement.closest("td, .meter-line > *");
      const isOneWord = /^[0-9,]+ %$/.test(text) || text === "anonymous";
      if (isOneWord && new Set(rects.map(({ top }) => top)).size > 1) found.push(`"${text}" is broken`);
      for (const one of rects) {
        for (const other of parts) {
          const [across, down] = [Math.min(one.right, other.right) - Math.max(one.left, other.left), Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top)];
          if (cell !== other.cell && across > 1 && down > 1) found.push(`"${text}" is drawn over "${other.text}"`);
        }
      }
      parts.push(...rects.map(({ left, right, top, bottom }) => ({ left, right, top, bottom, cell, text })));
    }
  }
  for (const tile of document.querySelectorAll("#tiles > div")) {
    const edge = tile.getBoundingClientRect();
    if (boxes(tile).some(({ right }) => right > edge.right)) found.push(`"${tile.textContent}" leaves its tile`);
  }
  return found;
}"""


def reply(asked):
    """What answers a call that uses up all that it asked for."""
    tokens = asked["max_tokens"]
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello."}}
    usage = {"prompt_tokens": 8, "completion_tokens": tokens, "total_tokens": 8 + tokens}
    told = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-4o", "choices": [choice], "usage": usage}
    return json.dumps(told).encode()


class Upstream:
    """Answers every call at once, but those to models that fail or are held."""

    def __init__(self):
        #: Model: status and headers of what it answers; model: the event that it waits for.
        self.failing, self.holding = {}, {}
        this = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if held := this.holding.get(asked["model"]):
                    held.wait()
                status, headers = this.failing.get(asked["model"], (200, {}))
                body = reply(asked) if status == 200 else json.dumps({"error": {"message": "It fails."}}).encode()
                self.send_response(status)
                for name, value in {"content-type": "application/json", "content-length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.base_url = f"http://127.0.0.1:{server.server_port}/v1"


class Gateway:
    """The binary with a configuration, in a directory of its own."""

    def __init__(self, binary, config, *flags):
        self.binary, self.flags, self.directory = binary, flags, Path(tempfile.mkdtemp())
        (self.directory / "tidegate.toml").write_text(config + ADMINS)
        self.start("127.0.0.1:0", "127.0.0.1:0")

    def start(self, api, admin):
        command = [self.binary, "serve", "--config", self.directory / "tidegate.toml", "--state-dir", self.directory / "state"]
        self.process = subprocess.Popen(
            [*command, *self.flags, "--listen", api, "--admin-listen", admin],
            env={"NO_PROXY": "127.0.0.1", "SPARE_KEY": "simulated"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        ready = self.process.stdout.readline()
        self.api, self.admin = re.search(r"api=http://([^/ ]+)/v1 admin=(\S+)", ready).groups()

    def stop(self):
        self.process.kill()
        self.process.wait()

    def call(self, connection=None, model="gpt-4o", tokens=16, user=None, **headers):
        """One call; its status, and the error's code. `authorization` is a caller's own, and makes an account of its own."""
        connection = connection or http.client.HTTPConnection(self.api, timeout=30)
        body = {"model": model, "max_tokens": tokens, "messages": [{"role": "user", "content": "Hello"}]}
        if user:
            body["user"] = user
        headers = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        told = json.loads(answer.read())
        return answer.status, told.get("error", {}).get("code")

    def status(self):
        return self.ask("GET", "/admin/v1/status")

    def ask(self, method, path):
        """What the admin listener answers to olga."""
        connection = http.client.HTTPConnection(self.admin.removeprefix("http://").rstrip("/"), timeout=30)
        connection.request(method, path, headers={"authorization": f"Bearer {OPERATOR}"})
        return json.load(connection.getresponse())


class Tab:
    """A page, and everything that it complained of."""

    def __init__(self, browser, gateway, script=None, **options):
        self.context = browser.new_context(viewport={"width": 1440, "height": 900}, **options)
        if script:
            self.context.add_init_script(script)
        self.page = self.context.new_page()
        self.title = self.page.locator("#verdict-title")
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

    def misdrawn(self):
        return self.page.evaluate(MISDRAWN)

    def accessible(self, axe, what):
        self.page.evaluate(axe)
        found = self.page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
        told = [f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:200]}" for one in found]
        assert not told, f"{what}:\n" + "\n".join(told)


@contextmanager
def browsing(gateway):
    """A browser for as long as the block lasts; the gateway ends with it."""
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            yield browser
            browser.close()
    finally:
        gateway.stop()
