"""Takes the tools of development out of an environment installed from the lock: `python prune_tools.py PYPROJECT`.

What the project's `dependencies` need, directly or through others, stays; everything else goes. The lock pins all of it
in one file, so that the hash of every package is checked before this decides.
"""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distributions, requires
from pathlib import Path

INSTALLERS = {"pip", "setuptools"}


def _name(text: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", text)
    return re.sub(r"[-_.]+", "-", match[0]).lower() if match else ""


def needed(pyproject: Path) -> set[str]:
    """Normalised names of the project's dependencies and of all that they need; markers but for extras are ignored."""
    waiting = list(tomllib.loads(pyproject.read_text())["project"]["dependencies"])
    found: set[str] = set()
    while waiting:
        name = _name(waiting.pop())
        if name not in found:
            found.add(name)
            try:
                waiting += [item for item in requires(name) or [] if "extra ==" not in item]
            except PackageNotFoundError:
                continue  # behind a marker for another system
    return found


def main(pyproject: Path) -> None:
    """Uninstall what is not needed from the environment of the running interpreter."""
    keep = needed(pyproject) | INSTALLERS
    surplus = sorted({item.metadata["Name"] for item in distributions() if _name(item.metadata["Name"]) not in keep})
    subprocess.run([sys.executable, "-m", "pip", "uninstall", "--yes", "--quiet", *surplus], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
