"""Tries cases in which filesystems differ, below a given folder, and prints the outcome of each.

tests/machine/posix.rs runs this in out/data and on a local disk, which must print the same.
"""

import fcntl
import mmap
import os
import sys


def say(what, do):
    try:
        print(what, do())
    except OSError as error:
        print(what, "fails with", error.errno)


def write(name, content=b"x"):
    with open(name, "wb") as file:
        file.write(content)


def mapped(fd, prot):
    return mmap.mmap(fd, 0, mmap.MAP_SHARED, prot)


os.chdir(sys.argv[1])
os.umask(0o022)

# ---- open files and directories whose name is removed or replaced ----

os.mkdir("d")
fd = os.open("d", os.O_RDONLY)
os.rmdir("d")
say("links of a removed directory", lambda: os.fstat(fd).st_nlink)
say("names in a removed directory", lambda: os.listdir(fd))
say("a file in a removed directory", lambda: os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
say("a directory in a removed directory", lambda: os.mkdir("x", dir_fd=fd))
say("a name in a removed directory", lambda: os.stat("x", dir_fd=fd))

os.mkdir("d")
fd = os.open("d", os.O_RDONLY)
os.mkdir("e")
os.rename("e", "d")
say("links of a replaced directory", lambda: os.fstat(fd).st_nlink)

os.mkfifo("pipe")
fd = os.open("pipe", os.O_RDWR)
os.unlink("pipe")
say("links of a removed pipe", lambda: os.fstat(fd).st_nlink)
say("a removed pipe", lambda: (os.write(fd, b"hello"), os.read(fd, 5)))

write("path")
fd = os.open("path", os.O_PATH)
os.unlink("path")
say("links of a removed file that is not open", lambda: os.fstat(fd).st_nlink)

os.symlink("anywhere", "link")
fd = os.open("link", os.O_PATH | os.O_NOFOLLOW)
os.unlink("link")
say("links of a removed link", lambda: os.fstat(fd).st_nlink)

write("open")
fd = os.open("open", os.O_RDWR)
os.unlink("open")
say("links of a removed open file", lambda: os.fstat(fd).st_nlink)
say("mode of a removed open file", lambda: (os.fchmod(fd, 0o600), oct(os.fstat(fd).st_mode)))
say("length of a removed open file", lambda: (os.ftruncate(fd, 10), os.fstat(fd).st_size))
say("opened by its descriptor", lambda: os.fstat(os.open(f"/proc/self/fd/{fd}", os.O_RDWR)).st_size)
say("linked by its descriptor", lambda: os.link(f"/proc/self/fd/{fd}", "back", follow_symlinks=True))

write("old")
fd = os.open("old", os.O_RDONLY)
write("new", b"yy")
os.rename("new", "old")
say("a replaced file", lambda: (os.fstat(fd).st_nlink, os.read(fd, 10)))

# ---- directories that change while they are read ----

os.mkdir("changing")
for n in range(300):
    write(f"changing/{n}")
for entry in os.scandir("changing"):
    os.unlink(entry.path)
say("removed while listed", lambda: os.listdir("changing"))
fd = os.open("changing", os.O_RDONLY)
write("changing/a")
say("read once", lambda: os.listdir(fd))
write("changing/b")
say("read again from the start", lambda: sorted(os.listdir(fd)))
os.unlink("changing/a")
say("and again", lambda: os.listdir(fd))

# ---- modes and groups ----

os.mkdir("group")
if os.geteuid() == 0:
    os.chown("group", -1, 12345)
os.chmod("group", 0o2775)
os.mkdir("group/sub")
write("group/file")
say("a directory that gives its group", lambda: [oct(os.stat(f"group/{n}").st_mode) for n in ("sub", "file")])
say("the group", lambda: [os.stat(f"group/{n}").st_gid == os.stat("group").st_gid for n in ("sub", "file")])
say("a link's mode", lambda: oct(os.lstat("changing").st_mode))
os.symlink("group/file", "mode")
say("chmod through a link", lambda: (os.chmod("mode", 0o611), oct(os.stat("group/file").st_mode)))
say("set-user-id stays", lambda: (os.chmod("group/file", 0o4755), oct(os.stat("group/file").st_mode)))

# ---- reading and writing at the same time ----

write("log", b"one")
reader = os.open("log", os.O_RDONLY)
say("read", lambda: os.read(reader, 10))
say("appended", lambda: os.write(os.open("log", os.O_WRONLY | os.O_APPEND), b"two"))
say("read on", lambda: os.read(reader, 10))
say("mapped to read", lambda: mapped(reader, mmap.PROT_READ)[:])
writer = os.open("log", os.O_RDWR)
view, change = mapped(reader, mmap.PROT_READ), mapped(writer, mmap.PROT_READ | mmap.PROT_WRITE)
change[0:3] = b"ONE"
say("changed by another map", lambda: view[:])
say("and read", lambda: os.pread(reader, 10, 0))
say("cut and grown", lambda: (os.ftruncate(writer, 2), os.ftruncate(writer, 5), os.pread(reader, 10, 0)))
say("locked", lambda: fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB))
say("locked by another", lambda: fcntl.flock(reader, fcntl.LOCK_EX | fcntl.LOCK_NB))
say("a region locked", lambda: fcntl.lockf(writer, fcntl.LOCK_EX | fcntl.LOCK_NB, 3))

fd = os.open("sparse", os.O_RDWR | os.O_CREAT)
os.pwrite(fd, b"x", 1 << 20)
say("data and hole", lambda: (os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 1 << 20, os.SEEK_HOLE)))
say("no data beyond", lambda: os.lseek(fd, 2 << 20, os.SEEK_DATA))
say("a directory made durable", lambda: os.fsync(os.open("group", os.O_RDONLY)))
say("names", lambda: sorted(os.listdir(".")))
