"""The tools of Kubernetes are built from the versions that the checkout pins."""

import re
from pathlib import Path

import pytest

from devnet import kube_tools
from devnet.tools import DevnetError


def test_every_library_is_the_one_of_the_pinned_release() -> None:
    text = (kube_tools.MODULE / "go.mod").read_text()
    (release,) = re.findall(r"k8s\.io/kubernetes v1\.([0-9.]+)", text)
    replaced = re.findall(r"^\t(k8s\.io/\S+) => (\S+) v0\.(\S+)$", text, re.M)
    assert len(replaced) > 30
    assert {(name, version) for name, _, version in replaced} == {(name, release) for _, name, version in replaced}


def test_without_go_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kube_tools, "find_go", lambda: None)
    assert not kube_tools.are_built()
    with pytest.raises(DevnetError, match="needs Go"):
        kube_tools.ensure_kube_tools()
