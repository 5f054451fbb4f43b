# Copies a tree, changes the source, and updates two parts of the copy in place with two rsyncs at
# the same time, while `find` and `ls` list the copy. tests/machine/programs.rs runs this and
# compares the files that remain.
set -eu
umask 022
python3 - <<'PYTHON'
import os
for folder in ("a", "b"):
    os.makedirs("source/" + folder + "/deep")
    for n in range(30):
        path = f"source/{folder}/" + ("deep/" if n % 3 else "") + f"f{n}"
        with open(path, "wb") as file:
            file.write(bytes((i * 7 + n) % 251 for i in range(n * n * 137)))
        os.utime(path, ns=(0, (1_000_000_000 + n) * 1_000_000_000 + n))
    os.link(f"source/{folder}/f0", f"source/{folder}/hard")
    os.symlink("deep/f1", f"source/{folder}/soft")
PYTHON
trap 'touch stop; wait' EXIT
(while [ ! -e stop ]; do find target -size +1k > /dev/null 2>&1 || true; ls -lR target > /dev/null 2>&1 || true; done) &
copy() { rsync -aH --inplace --no-whole-file --delete "$1" "$2"; }
copy source/ target/
python3 - <<'PYTHON'
import os
for folder in ("a", "b"):
    at = "source/" + folder + "/"
    with open(at + "f27", "r+b") as file: file.seek(50_000); file.write(b"patched")
    with open(at + "f24", "ab") as file: file.write(b"appended" * 1000)
    os.truncate(at + "f21", 777)
    os.unlink(at + "f18")
    os.rename(at + "f15", at + "renamed")
    os.chmod(at + "f12", 0o600)
    for name, time in (("f27", 5), ("f24", 6), ("f21", 7)): os.utime(at + name, ns=(0, time * 1_000_000_007))
PYTHON
copy source/a/ target/a/ & one=$!
copy source/b/ target/b/ & two=$!
wait $one
wait $two
left=$(rsync -aHnic --delete source/ target/)
[ -z "$left" ] || { echo "rsync would still change: $left" >&2; exit 1; }
(cd target && find . -type f -printf '%P %T@ %m %s\n' | sort) > times
touch stop
wait
rm stop
trap - EXIT
