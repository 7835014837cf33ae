"""`python -m devnet pack`: turn an image that somebody built into a signed release for a development network."""

from __future__ import annotations

from pathlib import Path

import click

from devnet.release_builder import ReleaseBuilder, ReleaseKeys


@click.command()
@click.option("--image", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=True)
@click.option("--version", required=True, help="Version of the release, as the chain will name it.")
@click.option("--keys", type=click.Path(path_type=Path), required=True, help="Folder of the keys; drawn if missing.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the archive.")
@click.option("--name", default="node", show_default=True)
def pack(image: Path, version: str, keys: Path, out: Path, name: str) -> None:
    """Sign an image with development keys and pack it as a release.

    Prints the enclave id and the archive's path. Beside the archive lies a folder with the release unpacked and the
    network's signature, as it is in a slot of the agent.
    """
    drawn = ReleaseKeys.load(keys) if (keys / "network.pem").exists() else ReleaseKeys.draw(keys)
    out.mkdir(parents=True, exist_ok=True)
    release = ReleaseBuilder(out, drawn, genesis_hash="").pack_image(image.read_bytes(), version, f"{name}-{version}")
    release.install(out / release.name)
    click.echo(f"enclave id {release.enclave_id}")
    click.echo(f"archive {release.archive}")
