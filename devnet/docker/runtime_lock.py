"""The part of the lock that runs, without the tools of development: `python runtime_lock.py PYPROJECT LOCK`, to stdout.

The lock says of every package through whom it came ("via"). What the project's `dependencies` name is needed, and what
came through a needed package is needed too. Versions and hashes stay as they are.
"""

import re
import sys
import tomllib
from pathlib import Path

_PIN = re.compile(r"^([A-Za-z0-9._-]+)==", re.MULTILINE)


def _name(text: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", text)
    return re.sub(r"[-_.]+", "-", match[0]).lower() if match else ""


def runtime_lock(pyproject: str, lock: str) -> str:
    """The blocks of `lock` (pip-compile's output, annotated) that the project in `pyproject` (TOML) needs to run."""
    starts = [match.start() for match in _PIN.finditer(lock)]
    blocks = [lock[start:end] for start, end in zip(starts, [*starts[1:], len(lock)], strict=True)]
    via: dict[str, set[str]] = {}
    for block in blocks:
        comments = re.findall(r"^ +#(.*)$", block, re.MULTILINE)
        via[_name(block)] = {_name(line.removeprefix(" via").strip()) for line in comments} - {""}
    needed = {_name(item) for item in tomllib.loads(pyproject)["project"]["dependencies"]}
    while more := {name for name, parents in via.items() if name not in needed and parents & needed}:
        needed |= more
    return "".join(block for block in blocks if _name(block) in needed)


if __name__ == "__main__":
    sys.stdout.write(runtime_lock(Path(sys.argv[1]).read_text(), Path(sys.argv[2]).read_text()))
