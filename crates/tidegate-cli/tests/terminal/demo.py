"""`tidegate demo` on terminals of several widths: what is drawn over leaves nothing behind. Run by ./test."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

PART = re.compile(r"\x1b\[(\d*)([A-Za-z])|\x1b\[\?\d+[hl]|([\r\n])|([^\x1b\r\n])")


class Screen:
    """As much of a terminal as is needed to see what stays on it."""

    def __init__(self, columns):
        self.columns, self.lines, self.row, self.column = columns, [""], 0, 0
        self.drawn = set()

    def take(self, text):
        for count, command, control, letter in PART.findall(text):
            if command == "A":
                self.row = max(0, self.row - int(count or 1))
            elif command == "B":
                self.down(int(count or 1))
            elif command == "K":
                self.lines[self.row] = "" if count == "2" else self.lines[self.row][: self.column]
            elif control == "\r":
                self.column = 0
            elif control == "\n":
                self.drawn.add(self.lines[self.row].strip())
                self.down(1)
            elif letter:
                if self.column == self.columns:
                    self.down(1)
                    self.column = 0
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + letter + line[self.column + 1 :]
                self.column += 1
                self.drawn.add(self.lines[self.row].strip())

    def down(self, rows):
        self.row += rows
        self.lines += [""] * (self.row + 1 - len(self.lines))


def start(binary, columns):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen([binary, "demo"], stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "xterm"})
    os.close(theirs)
    return process, ours


def read(ours):
    said = b""
    while True:
        try:
            more = os.read(ours, 65536)
        except OSError:  # the other end is gone
            more = b""
        if not more:
            return said.decode()
        said += more


def main(binary):
    demos = {columns: start(binary, columns) for columns in (40, 80)}
    for columns, (process, ours) in demos.items():
        screen = Screen(columns)
        screen.take(read(ours))
        assert process.wait() == 0, process.returncode
        left = [line.rstrip() for line in screen.lines if line.strip()]
        shown = "\n".join(left)
        live = [line for line in screen.drawn if re.fullmatch(r"tidegate +\d+ answered.* 429s", line)]
        assert live, f"{columns} columns: nothing was shown while it went\n{shown}"
        assert not [line for line in left if re.search(r"\d answered", line)], f"{columns} columns: left behind\n{shown}"
        assert sum(line.startswith("answered") for line in left) == 1 and len(left) < 20, shown
        print(f"{columns} columns: {len(left)} lines\n{shown}")


if __name__ == "__main__":
    main(sys.argv[1])
