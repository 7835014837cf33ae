"""The import closure of a program: the project files that belong in its enclave's image.

An image contains exactly the files that its program imports. A change of another file, such as the agent's client, does
not change the program's MRENCLAVE.
"""

import ast
from collections.abc import Collection, Iterator
from pathlib import Path


def import_closure(root: Path, entry: str, packages: Collection[str]) -> dict[str, Path]:
    """Return the files of `entry` and of all its imports, direct and indirect, by their names in an image.

    `root` is the folder that holds `packages` (names of top-level packages); other packages are left out. `entry` is
    the full name of a module. Imports inside functions count, those under `if TYPE_CHECKING:` do not.

    Raises ValueError if `entry` is no module of these packages, OSError and SyntaxError for a file that cannot be read.

        >>> import_closure(Path("src"), "keyvault.vault.serve", ("keyvault", "attestation"))
        {'keyvault/__init__.py': PosixPath('src/keyvault/__init__.py'), ...}
    """
    if _file_of(root, entry, packages) is None:
        raise ValueError(f"{entry} is no module of {', '.join(packages)} in {root}")
    files: dict[str, Path] = {}
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        parts = name.split(".")
        for module in (".".join(parts[: count + 1]) for count in range(len(parts))):
            file = _file_of(root, module, packages)
            if file is None or file.relative_to(root).as_posix() in files:
                continue
            files[file.relative_to(root).as_posix()] = file
            waiting += _imported(file, module if file.name == "__init__.py" else module.rpartition(".")[0])
    return dict(sorted(files.items()))


def _file_of(root: Path, module: str, packages: Collection[str]) -> Path | None:
    """Return the source file of a module, or None for a name that is no module of these packages."""
    if module.split(".")[0] not in packages:
        return None
    place = root.joinpath(*module.split("."))
    return next((path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file()), None)


def _imported(file: Path, package: str) -> Iterator[str]:
    """Yield every full name that a file may import. `from a import b` yields `a.b`, because b may be a module."""
    for node in _run_time_nodes(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]).rstrip(".")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a tree's nodes, without those under `if TYPE_CHECKING:`, which no program runs."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            for other in child.orelse:
                yield from _run_time_nodes(other)
        else:
            yield from _run_time_nodes(child)
