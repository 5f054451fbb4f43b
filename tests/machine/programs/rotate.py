"""Three processes append to one log while a fourth one rotates it. No line is lost or cut.

In each turn the fourth process renames the log, waits until all writers have opened a new one, and
compresses the old one. tests/machine/programs.rs runs this and compares the files that remain.
"""

import gzip
import os
import subprocess
import sys
import time

LINES, WRITERS, TURNS = 3_000, 3, 4


def until(what, condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


class Writer:
    def __init__(self, writer):
        self.writer, self.turn = writer, 0
        self.open()

    def open(self):
        self.log = os.open("app.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def follow(self):
        """Opens the log again, once for each turn. Returns whether all turns are over."""
        while self.turn < TURNS and os.path.exists(f"turn.{self.turn}"):
            os.close(self.log)
            self.open()
            open(f"turned.{self.turn}.{self.writer}", "w").close()
            self.turn += 1
        return self.turn == TURNS

    def write(self):
        for number in range(LINES):
            # The last 50 lines are written after the last turn.
            if number == LINES - 50:
                until("waited in vain for the last turn", self.follow)
            line = f"{self.writer} {number} " + "x" * (number % 90) + "\n"
            assert os.write(self.log, line.encode()) == len(line)
            self.follow()


writers = []
for writer in range(WRITERS):
    pid = os.fork()
    if pid == 0:
        try:
            Writer(writer).write()
            os._exit(0)
        except BaseException as error:
            print("writer", writer, repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    writers.append(pid)
for turn in range(TURNS):
    until("waited in vain for a log to rotate", lambda: os.path.exists("app.log") and os.path.getsize("app.log") > 3_000 or turn > 1)
    if os.path.exists("app.log"):
        os.rename("app.log", f"app.log.{turn}")
    open(f"turn.{turn}", "w").close()
    until(
        "waited in vain for all writers to open the new log",
        lambda: all(os.path.exists(f"turned.{turn}.{writer}") for writer in range(WRITERS)),
    )
    if os.path.exists(f"app.log.{turn}"):
        size = os.path.getsize(f"app.log.{turn}")
        subprocess.run(["gzip", f"app.log.{turn}"], check=True)
        with gzip.open(f"app.log.{turn}.gz") as file:
            assert len(file.read()) == size, turn
assert not any(os.waitpid(pid, 0)[1] for pid in writers)

lines = []
for turn in range(TURNS):
    if os.path.exists(f"app.log.{turn}.gz"):
        with gzip.open(f"app.log.{turn}.gz", "rt") as file:
            lines += file.readlines()
with open("app.log") as file:
    lines += file.readlines()
for writer in range(WRITERS):
    numbers = [int(line.split()[1]) for line in lines if line.startswith(f"{writer} ")]
    assert numbers == list(range(LINES)), (writer, len(numbers))
with open("lines", "w") as file:
    file.writelines(sorted(lines))
# Which file a line is in is a matter of chance, so only the sorted lines remain to be compared.
for name in os.listdir("."):
    if name != "lines":
        os.unlink(name)
