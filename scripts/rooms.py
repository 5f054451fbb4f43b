#!/usr/bin/env python3
"""Draws the rooms of the code: the crates of the workspace, their modules, and their imports.

    scripts/rooms.py            prints a Graphviz picture of the crates (dot -Tsvg draws it)
    scripts/rooms.py --modules  prints a picture of the crates and of the modules of each crate
    scripts/rooms.py --check    fails when a crate imports one that its floor does not allow, or when
                                modules of one crate, or of one folder in it, import each other in a
                                circle

The crates come from `cargo metadata`, and the modules from the `use` lines and the paths in their
files. Code in `#[cfg(test)]` modules does not count.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The floors from the ground up. A crate may import only crates of earlier floors.
FLOORS = [
    # Modules that come with Ion are ordinary programs: they import none of its crates.
    ["ion-fetch", "ion-index"],
    ["ion-model", "ion-system"],
    ["ion-stores"],
    ["ion-plane"],
    ["ion-fs", "ion-jobs", "handler-shim"],
    ["ion-csi"],
    ["ionfs"],
    ["ion-run"],
    ["ion-dispatch"],
    ["ion-gateway"],
    ["dispatcher"],
    ["ion"],
]


def crates():
    """Returns each crate of the workspace with its folder and the other crates that it uses."""
    command = ["cargo", "metadata", "--format-version", "1", "--no-deps", "--locked"]
    told = json.loads(subprocess.check_output(command, cwd=ROOT))
    names = {package["name"] for package in told["packages"]}
    return {
        package["name"]: (
            Path(package["manifest_path"]).parent,
            sorted(
                {one["name"] for one in package["dependencies"] if one["kind"] is None} & names
            ),
        )
        for package in told["packages"]
    }


def without_tests(text):
    """Returns the text of a file up to its test module, without comments."""
    text = text.split("#[cfg(test)]\nmod tests {")[0]
    return re.sub(r"//.*", "", text)


def modules(folder, inside=()):
    """Returns the top-level modules of a crate, and the other ones that each of them names. With
    `inside`, returns the same for the modules of one folder of the crate."""
    source = (folder / "src").joinpath(*inside)
    room = "::".join(["crate", *inside])
    texts = {}
    for path in sorted(source.rglob("*.rs")):
        parts = path.relative_to(source).with_suffix("").parts
        # Leaves out the roots of crates and programs, and files that only tests compile.
        if parts[0] in ("bin", "lib", "main") or parts[-1] in ("tests", "model"):
            continue
        texts.setdefault(parts[0], []).append((len(parts), without_tests(path.read_text())))
    found = {}
    for module, files in texts.items():
        named = set()
        for depth, text in files:
            named.update(re.findall(r"\b" + room + "::([a-z_]+)", text))
            # A path with one `super` for each level of its file names a neighbour.
            named.update(re.findall(r"(?<![:\w])" + "super::" * depth + r"([a-z_]+)", text))
        found[module] = sorted((named & set(texts)) - {module})
    return found


def folders_of_modules(folder):
    """Returns the folders below a crate's source, each as the names of its path."""
    source = folder / "src"
    return [path.relative_to(source).parts for path in sorted(source.rglob("*/")) if path.is_dir()]


def circles(edges):
    """Returns the groups of nodes that reach each other."""
    reach = {}
    for start in edges:
        seen, open_nodes = set(), [start]
        while open_nodes:
            for node in edges[open_nodes.pop()]:
                if node not in seen:
                    seen.add(node)
                    open_nodes.append(node)
        reach[start] = seen
    groups = set()
    for node in edges:
        if node in reach[node]:
            groups.add(tuple(sorted(n for n in edges if n in reach[node] and node in reach[n])))
    return sorted(groups)


def check(all_crates):
    """Describes each import that the rules do not allow."""
    floor = {name: n for n, names in enumerate(FLOORS) for name in names}
    for name, (folder, imports) in all_crates.items():
        if name not in floor:
            yield f"crate {name} has no floor: add it to FLOORS in scripts/rooms.py"
            continue
        for other in imports:
            if floor.get(other, -1) >= floor[name]:
                yield f"crate {name} imports {other}, which is not below it"
        for inside in [(), *folders_of_modules(folder)]:
            for group in circles(modules(folder, inside)):
                room = "::".join([name, *inside])
                yield f"modules of {room} import each other in a circle: {', '.join(group)}"


def draw(all_crates, with_modules):
    """Prints a Graphviz picture."""
    print("digraph rooms {\n  rankdir=BT; node [shape=box, fontname=sans];")
    for name, (folder, imports) in all_crates.items():
        print(f'  "{name}";')
        for other in imports:
            print(f'  "{name}" -> "{other}";')
        if with_modules:
            for module, named in modules(folder).items():
                print(f'  "{name}/{module}" [shape=ellipse]; "{name}/{module}" -> "{name}" [style=dotted];')
                for other in named:
                    print(f'  "{name}/{module}" -> "{name}/{other}";')
    print("}")


def main():
    all_crates = crates()
    if sys.argv[1:] == ["--check"]:
        wrong = list(check(all_crates))
        for line in wrong:
            print(f"{sys.argv[0]}: {line}", file=sys.stderr)
        sys.exit(1 if wrong else 0)
    if sys.argv[1:] not in ([], ["--modules"]):
        sys.exit(__doc__)
    draw(all_crates, sys.argv[1:] == ["--modules"])


main()
