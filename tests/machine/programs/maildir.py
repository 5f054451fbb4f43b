"""Several processes deliver mail to a maildir, while others read, mark and remove it.

tests/machine/programs.rs runs this and compares the files that remain.
"""

import os
import sys
import time

MESSAGES, DELIVERERS, READERS = 60, 3, 2


def body(deliverer, number):
    return (f"From: {deliverer}\nSubject: {number}\n\n" + f"line {number} " * (number * 7 + 1)).encode()


def deliver(deliverer):
    for number in range(MESSAGES):
        name = f"{number}.{deliverer}.host"
        with open("tmp/" + name, "wb") as file:
            file.write(body(deliverer, number))
            file.flush()
            os.fsync(file.fileno())
        if number % 2:
            os.rename("tmp/" + name, "new/" + name)
        else:
            os.link("tmp/" + name, "new/" + name)
            os.unlink("tmp/" + name)


def check(path, name):
    number, deliverer = name.split(".")[:2]
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(size)
        rest = file.read()
    wanted = body(int(deliverer), int(number))
    assert content + rest == wanted and size == len(wanted), (path, size, len(content), len(rest), len(wanted))


def attempt(act, *args):
    """Runs `act`. Returns False if another reader has moved or removed the file before."""
    try:
        act(*args)
        return True
    except FileNotFoundError:
        return False


def read():
    deadline = time.monotonic() + 120
    while not (os.path.exists("delivered") and not os.listdir("new")):
        assert time.monotonic() < deadline, os.listdir("new")
        for name in os.listdir("new"):
            seen = "cur/" + name + ":2,S"
            if not attempt(os.rename, "new/" + name, seen):
                continue
            check(seen, name)
            os.rename(seen, "cur/" + name + ":2,RS")
            if int(name.split(".")[0]) % 5 == 0:
                os.unlink("cur/" + name + ":2,RS")
        for entry in os.scandir("cur"):
            # Reads the attributes by the directory's entry, then as many bytes as the size says.
            attempt(lambda entry=entry: entry.stat() and check(entry.path, entry.name))


def start(work, *args):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work(*args)
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status) if status == 0 else None
    return pid


for folder in ("tmp", "new", "cur"):
    os.mkdir(folder)
readers = [start(read) for _ in range(READERS)]
deliverers = [start(deliver, number) for number in range(DELIVERERS)]
failed = [pid for pid in deliverers if os.waitpid(pid, 0)[1]]
open("delivered", "w").close()
failed += [pid for pid in readers if os.waitpid(pid, 0)[1]]
assert not failed, failed
assert os.listdir("tmp") == [] and os.listdir("new") == []
