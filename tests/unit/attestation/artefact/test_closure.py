"""The files of a program: its direct and indirect imports, and nothing else."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from attestation.artefact.closure import import_closure

TREE = {
    "app/__init__.py": "",
    "app/main.py": "import os\nfrom . import near\nfrom app.deep import thing\nfrom .deep.more import VALUE\n",
    "app/near.py": "def late():\n    import other.lazy\n    from ..app import sibling\n",
    "app/sibling.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from app import unused\n",
    "app/unused.py": "",
    "app/deep/__init__.py": "",
    "app/deep/thing.py": "import json.decoder\nimport third_party\n",
    "app/deep/more.py": "VALUE = 1\n",
    "app/deep/beside.py": "",
    "other/__init__.py": "",
    "other/lazy.py": "from app import main\n",
    "other/beside.py": "",
    "third_party/__init__.py": "",
}


def planted(folder: Path, tree: Mapping[str, str]) -> Path:
    for name, text in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_it_holds_what_is_imported_at_any_depth_and_nothing_beside_it(tmp_path: Path) -> None:
    found = import_closure(planted(tmp_path, TREE), "app.main", ("app", "other"))
    left_out = {"app/unused.py", "app/deep/beside.py", "other/beside.py", "third_party/__init__.py"}
    assert set(found) == TREE.keys() - left_out
    assert {name: path.relative_to(tmp_path).as_posix() for name, path in found.items()} == {n: n for n in found}


def test_an_entry_that_is_no_module_of_the_packages_is_refused(tmp_path: Path) -> None:
    planted(tmp_path, TREE)
    for entry in ("app.missing", "third_party", "json"):
        with pytest.raises(ValueError, match=f"{entry} is no module"):
            import_closure(tmp_path, entry, ("app", "other"))
