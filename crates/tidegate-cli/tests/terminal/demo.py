"""`tidegate demo` on terminals of several widths: what is drawn over leaves nothing behind. Run by ./test."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

from screen import Screen


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
    demos = {columns: start(binary, columns) for columns in (30, 40, 80)}
    for columns, (process, ours) in demos.items():
        screen, drawn = Screen(columns), read(ours)
        screen.feed(drawn)
        assert process.wait() == 0, process.returncode
        left = [row.rstrip() for row in screen.rows if row.strip()]
        shown = "\n".join(left)
        assert re.search(r"tidegate +\d+ done.* 429s", drawn), f"{columns} columns: nothing was shown while it went\n{shown}"
        assert not [line for line in left if re.search(r"\d done", line)], f"{columns} columns: left behind\n{shown}"
        assert sum(line.startswith("answered") for line in left) == 1, shown
        print(f"{columns} columns: {len(left)} lines\n{shown}")


if __name__ == "__main__":
    main(sys.argv[1])
