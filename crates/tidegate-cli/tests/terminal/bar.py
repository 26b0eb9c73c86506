"""The progress bar of `tidegate run` on terminals of several widths: one row, and no notice lost.

    python3 crates/tidegate-cli/tests/terminal/bar.py target/debug/tidegate
"""

import fcntl
import json
import os
import pathlib
import pty
import re
import signal
import struct
import subprocess
import sys
import tempfile
import termios

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
CONTROL = re.compile(r"\x1b\[(\d*)(?:;\d+)*([A-Za-z])")


class Screen:
    """As much of a terminal as the bar uses: rows that wrap, and a cursor that moves and erases."""

    def __init__(self, columns):
        self.columns, self.rows, self.row, self.column, self.wrapped = columns, [""], 0, 0, 0

    def put(self, character):
        if self.column == self.columns:
            self.wrapped += 1
            self.down()
            self.column = 0
        row = self.rows[self.row].ljust(self.column)
        self.rows[self.row] = row[: self.column] + character + row[self.column + 1 :]
        self.column += 1

    def down(self):
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append("")

    def feed(self, text):
        while text:
            control = CONTROL.match(text)
            if control:
                count, what = int(control[1] or 0), control[2]
                if what == "A":
                    self.row = max(0, self.row - max(1, count))
                elif what == "B":
                    self.row = min(len(self.rows) - 1, self.row + max(1, count))
                elif what == "C":
                    self.column = min(self.columns - 1, self.column + max(1, count))
                elif what == "D":
                    self.column = max(0, self.column - max(1, count))
                elif what == "K":
                    kept = self.rows[self.row]
                    self.rows[self.row] = "" if count == 2 else kept[: self.column]
                elif what == "J":
                    self.rows[self.row] = self.rows[self.row][: self.column]
                    del self.rows[self.row + 1 :]
                elif what != "m":
                    raise AssertionError(f"the terminal here knows no {control[0]!r}")
                text = text[control.end() :]
                continue
            character, text = text[0], text[1:]
            if character == "\r":
                self.column = 0
            elif character == "\n":
                self.down()
            else:
                self.put(character)


def run(columns, place, upstream, variables):
    """Runs it on a terminal, asks it to stop once the bar has moved, and returns the screen and what was drawn."""
    out = place / f"{columns}{len(variables)}.jsonl"
    process, terminal = pty.fork()
    if process == 0:
        environment = {"HOME": str(place), "TERM": "xterm-256color", **variables}
        os.chdir(place)
        os.execve(BINARY, [BINARY, "run", "in.jsonl", "-o", str(out), "--upstream", upstream], environment)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    drawn, told = "", False
    while True:
        try:
            drawn += os.read(terminal, 65536).decode(errors="replace")
        except OSError:
            break
        if not told and len(set(re.findall(r"(\d+)/400 done", drawn))) > 3:
            os.kill(process, signal.SIGINT)
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
    assert not re.search(r"\d/400 done, .*\d+/400 done", shown, re.DOTALL), f"old bars are left; {where}"
    # The notice and the summary may be wider than the terminal; the bar may not.
    bars = [part for part in re.split(r"[\r\n]|\x1b\[\d*[A-Za-z]", drawn) if "/400 done" in part]
    assert bars, where
    for bar in bars:
        assert len(bar) <= columns, f"{len(bar)} columns: {bar!r}; {where}"
    if variables:
        assert not re.search(r"\x1b\[[\d;]+m", drawn), f"colours; {where}"
    print(f"{columns} columns {variables}: {max(bars, key=len).strip()}")


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
    finally:
        simulator.kill()


main()
