"""Build the reference node in Go as a static program: the image of a native release."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devnet.tools import DEVNET, DevnetError, run_tool

GO_NODE = DEVNET / "go_node"
GO_MINOR_MIN = 26


def find_go() -> str | None:
    """Return the path of a Go that is new enough, or None."""
    go = shutil.which("go")
    if go is None:
        return None
    done = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False)
    found = re.match(r"go1\.(\d+)", done.stdout)
    return go if found is not None and int(found[1]) >= GO_MINOR_MIN else None


def build_go_program(
    out: Path, folder: Path, *, package: str = ".", overlay: Mapping[str, bytes] | None = None
) -> None:
    """Build a static program of the module in `folder`; `overlay` replaces files of it. Raises DevnetError.

    The same sources give the same bytes for any folder and user: they contain no paths, times or build ids.
    """
    go = find_go()
    if go is None:
        raise DevnetError(f"building a Go program needs Go 1.{GO_MINOR_MIN}; install it, or take a release in Python")
    with tempfile.TemporaryDirectory(prefix="dcupgrade-go-") as work:
        replaced = {}
        for number, (name, data) in enumerate((overlay or {}).items()):
            (path := Path(work) / f"{number}-{Path(name).name}").write_bytes(data)
            replaced[str(folder / name)] = str(path)
        (overlay_file := Path(work) / "overlay.json").write_text(json.dumps({"Replace": replaced}))
        argv = [go, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", f"-overlay={overlay_file}"]
        env = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": ""}
        run_tool([*argv, "-o", str(out), package], what=f"building {folder.name} in Go", cwd=folder, env=env)


def build_go_node(out: Path, policy: Mapping[str, Any]) -> None:
    """Build the node with its policy, which is measured too."""
    build_go_program(out, GO_NODE, overlay={"node_policy.json": json.dumps(policy, sort_keys=True, indent=1).encode()})
