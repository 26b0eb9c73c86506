"""The progress bar of `tidegate run` on terminals of several widths: one row, and no notice lost.

    python3 crates/tidegate-cli/tests/terminal/bar.py target/debug/tidegate
"""

import fcntl
import json
import os
import pathlib
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios

from screen import Screen

BINARY = os.path.abspath(sys.argv[1])
SCENARIO = """
[latency]
first_token = "20ms"
tokens_per_second = 1000000.0
[model.m]
rpm = 1200
tpm = 1000000
initial_fill = 0.02
"""


def has_moved(drawn):
    return len(set(re.findall(r"(\d+)/400 done", drawn))) > 3


def run(columns, place, upstream, variables, source="in.jsonl", is_time=has_moved):
    """Runs it on a terminal, asks it to stop once it is time, and returns the screen and what was drawn."""
    out = place / f"{source}{columns}{len(variables)}.jsonl"
    process, terminal = pty.fork()
    if process == 0:
        environment = {"HOME": str(place), "TERM": "xterm-256color", **variables}
        os.chdir(place)
        os.execve(BINARY, [BINARY, "run", source, "-o", str(out), "--upstream", upstream], environment)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    drawn, told = "", False
    while True:
        try:
            drawn += os.read(terminal, 65536).decode(errors="replace")
        except OSError:
            break
        if not told and is_time(drawn):
            # As a person does it: the terminal shows it, too.
            os.write(terminal, b"\x03")
            told = True
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    screen = Screen(columns)
    screen.feed(drawn)
    return code, screen, drawn


def check(columns, place, upstream, variables):
    code, screen, drawn = run(columns, place, upstream, variables)
    shown = "\n".join(row.rstrip() for row in screen.rows)
    whole = "".join(row.ljust(columns) if len(row) == columns else row + "\n" for row in screen.rows)
    where = f"{columns} columns {variables}: {code}\n{shown}"
    assert code == 130, where
    assert "a second signal stops at once" in whole, f"the notice is lost; {where}"
    assert "interrupted: " in whole, f"no summary; {where}"
    assert "/400 done" not in shown, f"a bar is left; {where}"
    # The notice and the summary may be wider than the terminal; the bar may not.
    bars = [part for part in re.split(r"[\r\n]|\x1b\[\d*[A-Za-z]", drawn) if "/400 done" in part]
    assert bars, where
    for bar in bars:
        assert len(bar) <= columns, f"{len(bar)} columns: {bar!r}; {where}"
    if variables:
        assert not re.search(r"\x1b\[[\d;]+m", drawn), f"colours; {where}"
    print(f"{columns} columns {variables}: {max(bars, key=len).strip()}")


def check_reading(place, upstream):
    """While a large input is read it says so, and may be told to stop."""
    (place / "large.jsonl").write_text(300_000 * '{"model":"m","messages":[{"role":"user","content":"hello"}]}\n')
    code, screen, drawn = run(80, place, upstream, {}, "large.jsonl", lambda drawn: "reading large.jsonl: " in drawn)
    shown = "\n".join(row.rstrip() for row in screen.rows)
    where = f"{code}\n{shown}"
    assert code == 130 and "interrupted before anything was sent" in shown, where
    assert "reading" not in shown, f"the bar is left; {where}"


def main():
    place = pathlib.Path(tempfile.mkdtemp())
    (place / "scenario.toml").write_text(SCENARIO)
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    (place / "in.jsonl").write_text(400 * (json.dumps(body) + "\n"))
    simulator = subprocess.Popen(
        [BINARY, "sim", "--listen", "127.0.0.1:0", "--scenario", str(place / "scenario.toml")], stdout=subprocess.PIPE
    )
    try:
        upstream = re.search(rb"http://\S+", simulator.stdout.readline())[0].decode()
        for columns in (40, 80, 120, 200):
            check(columns, place, upstream, {})
        check(80, place, upstream, {"NO_COLOR": "1"})
        check_reading(place, upstream)
    finally:
        simulator.kill()


main()
