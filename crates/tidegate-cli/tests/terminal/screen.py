"""What stays on a terminal of some width."""

import re

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
