"""Looks up every name that this project uses of other packages in releases that it cannot run.

  pip download --no-deps --only-binary=:all: --python-version 3.12 --dest wheels jax flax optax
  python -m tools.newer_names wheels

Nothing is imported: the code of this project and of the wheels is parsed. A name counts as present
if the file of its module contains the word; names that the module lists as deprecated are reported,
too. The check shows that nothing was removed or renamed, not that everything still behaves as it
did.
"""

import argparse
import ast
import collections
import re
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def used(package: str) -> dict[str, set[str]]:
    """Return the dotted names of a package that the code uses, each with the files that use it."""
    found = collections.defaultdict(set)
    for folder in ("fct_jax", "tools", "configs", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            for name in _names(ast.parse(file.read_text()), package):
                found[name].add(str(file.relative_to(ROOT)))
    return dict(found)


def _names(tree: ast.Module, package: str) -> set[str]:
    """Return the full names of a package's members that a file imports, and of their attributes."""
    known = {}  # a name in this file -> its full name
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == package:
                    known[alias.asname or package] = alias.name if alias.asname else package
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def full(node) -> str | None:
        if isinstance(node, ast.Name):
            return known.get(node.id)
        before = full(node.value) if isinstance(node, ast.Attribute) else None
        return before and f"{before}.{node.attr}"

    attributes = (full(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return {*known.values(), *filter(None, attributes)}


def missing(names, files: dict[str, str]) -> dict[str, str]:
    """Return the names that are missing or deprecated, each with the reason.

    ``files`` holds the texts of a package by path, such as "jax/numpy/__init__.py".
    """
    found = {}
    for name in sorted(names):
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            stem = "/".join(parts[:length])
            text = files.get(f"{stem}/__init__.py", files.get(f"{stem}.py"))
            if text is not None:
                break
        else:
            found[name] = f"no module {parts[0]}"
            continue
        if length == len(parts):
            continue
        word = re.escape(parts[length])
        if "_deprecations = {" in text and re.search(rf'^ +"{word}": ', text, re.M):
            found[name] = f"deprecated in {stem}"
        elif not re.search(rf"\b{word}\b", text):
            found[name] = f"not in {stem}"
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 1 if something is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of wheels")
    wheels = sorted(parser.parse_args(arguments).folder.glob("*.whl"))
    if not wheels:
        parser.error("the folder holds no wheels")
    ended = 0
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            paths = [path for path in archive.namelist() if path.endswith(".py")]
            files = {path: archive.read(path).decode() for path in paths}
        names = {}
        for package in {path.split("/")[0] for path in files if "/" in path}:
            names |= used(package)
        lost = missing(names, files)
        print(f"{wheel.name}: {len(names)} names are used, {len(lost)} are missing or deprecated")
        for name, why in lost.items():
            print(f"  {name}: {why} ({', '.join(sorted(names[name])[:3])})")
        ended |= bool(lost)
    return ended


if __name__ == "__main__":
    sys.exit(main())
