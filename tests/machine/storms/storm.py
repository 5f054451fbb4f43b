"""A module that uses as much as it can of one resource: storm.py KIND SIZE TREE.

If a limit refuses a call, it prints the error and exits with 0. tests/machine/storms.rs runs it.
"""

import errno
import json
import os
import resource
import sys
import threading

kind, size, tree = sys.argv[1], int(sys.argv[2]), sys.argv[3]
LIMITS = (errno.EDQUOT, errno.ENOSPC, errno.EMFILE, errno.ENAMETOOLONG, errno.E2BIG)


def files():
    for n in range(size):
        os.close(os.open(f"f{n}", os.O_CREAT | os.O_WRONLY))


def handles():
    os.mkdir("d")
    for n in range(size * 5):
        os.close(os.open(f"d/f{n}", os.O_CREAT | os.O_WRONLY))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    held = [os.scandir("d") for _ in range(size)]
    for one in held:
        next(one)
    assert sum(1 for _ in os.scandir("d")) == size * 5


def events():
    """Writes event files with too many bytes of values, and closes all at the same moment."""
    document = ('{"eventType": "x", "v": "' + "v" * (15 << 20) + '"}').encode()
    ready, seen = threading.Barrier(size), []

    def one(n):
        file = os.open(f"../events/e{n}", os.O_CREAT | os.O_WRONLY)
        left = memoryview(document)
        while left:
            left = left[os.write(file, left):]
        ready.wait()
        try:
            os.close(file)
        except OSError as error:
            seen.append(error.errno)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [errno.E2BIG] * size, (len(seen), set(seen))


def xattrs():
    for n in range(size):
        os.close(os.open(f"f{n}", os.O_CREAT | os.O_WRONLY))
        for k in range(12):
            os.setxattr(f"f{n}", f"user.{'k' * 100}{k}", b"v" * 200)
        assert len(os.listxattr(f"f{n}")) == 12


def links():
    for n in range(size):
        os.symlink("t/" * 2000 + "t", f"l{n}")
    assert len(os.readlink("l0")) == 4001


def inodes():
    for n in range(size // 4):
        os.makedirs(f"d{n}/e")
        os.mkfifo(f"d{n}/pipe")
        os.link(f"d{n}/pipe", f"d{n}/e/other")
        os.rename(f"d{n}/e", f"d{n}/f")


def names():
    """Makes files with long names in a deep folder, and three events with one long field each.

    The field is a type, a file name or a key. It is nearly as long as an event file may be.
    """
    deep = "/".join(["d" * 200] * 15)
    os.makedirs(deep)
    for n in range(size):
        os.close(os.open(f"{deep}/{n:0255}", os.O_CREAT | os.O_WRONLY))
    assert len(os.listdir(deep)) == size
    for name, document in (
        ("type", {"eventType": "t" * (15 << 20)}),
        ("file", {"eventType": "x", "files": ["f" * (15 << 20)]}),
        ("key", {"eventType": "x", "k" * (15 << 20): "v"}),
    ):
        try:
            with open("../events/" + name, "w") as file:
                json.dump(document, file)
        except OSError as error:
            assert error.errno in (errno.EACCES, errno.E2BIG, errno.EINVAL, errno.ENAMETOOLONG, errno.ENOENT), error
        else:
            raise SystemExit("an event with a long " + name + " was not refused")


def logs():
    """Writes mebibytes without the end of a line to the standard output."""
    piece = b"x" * (1 << 20)
    for _ in range(size):
        left = memoryview(piece)
        while left:
            left = left[os.write(1, left):]


os.chdir(tree + "/out/data")
try:
    globals()[kind]()
except OSError as error:
    if error.errno not in LIMITS:
        raise
    print("refused:", error, file=sys.stderr)
