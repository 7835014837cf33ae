"""Build kube-apiserver, kubectl and helm from the Go module proxy, with the versions and hashes in `kubernetes/`.

k8s.io/kubernetes cannot be required like other modules, because its go.mod replaces its own libraries by folders of its
checkout. `kubernetes/go.mod` repeats that block with the published libraries of the same release.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import click

from .go_image import GO_MINOR_MIN, find_go
from .signals import interruptible
from .tools import DEVNET, DevnetError, apt_install_missing, cache_dir, digest_of, install_once, run_tool

MODULE = DEVNET / "kubernetes"
TOOLS = ("kube-apiserver", "kubectl", "helm")
SOURCES = [MODULE / "go.mod", MODULE / "go.sum"]
FLAGS = ("-p", "1", "-trimpath", "-buildvcs=false", "-ldflags=-s -w")


def _name() -> str:
    return f"kubernetes-{digest_of(SOURCES, platform.machine())}"


def are_built() -> bool:
    """Tell whether the tools are in the cache."""
    return (cache_dir() / _name()).is_dir()


def ensure_kube_tools() -> Path:
    """Return the folder of the built tools. Build them once, at the lowest priority. Raises DevnetError."""

    def build(part: Path) -> None:
        go = find_go()
        if go is None:
            raise DevnetError(f"building kube-apiserver needs Go 1.{GO_MINOR_MIN}")
        click.echo("devnet: building kube-apiserver, kubectl and helm (once; about 10 minutes)", err=True)
        # readonly: the build fails if the hash of a module is not in go.sum
        env = {**os.environ, "GOWORK": "off", "GOFLAGS": "-mod=readonly"}
        argv = ["nice", "-n", "19", go, "build", *FLAGS, "-o", f"{part}/", "tool"]
        run_tool(argv, what="building Kubernetes", cwd=MODULE, env=env)

    return install_once(_name(), build)


@click.command()
@click.option("--apt", is_flag=True, help="First install etcd by apt-get where it is missing (needs root).")
def kube_build(apt: bool) -> None:
    """Build kube-apiserver, kubectl and helm into the cache (once; about 10 minutes) and print their folder."""
    try:
        with interruptible():  # the compiler ends together with this command
            if apt:
                apt_install_missing({"etcd": "etcd-server"}, "etcd")
            click.echo(str(ensure_kube_tools()))
    except DevnetError as error:
        raise click.ClickException(str(error)) from error
