"""`python -m devnet up`: a dev chain in the foreground."""

import contextlib
import time
from typing import get_args

import click

from .chain import ChainKind, DevChain
from .chain_process import RuntimeName
from .signals import interruptible
from .tools import DevnetError


@click.command()
@click.option("--chain", "kind", type=click.Choice(get_args(ChainKind)), default="chopsticks", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=9944, show_default=True, help="0: any free port.")
@click.option("--runtime", type=click.Choice(get_args(RuntimeName)), default="base", show_default=True)
@click.option("--block-time", "block_time_ms", type=int, help="Milliseconds. [default: 1000, node: 2000]")
def up(kind: ChainKind, port: int, runtime: RuntimeName, block_time_ms: int | None) -> None:
    """Start a dev chain, print its URL, and keep it until SIGINT, SIGTERM or SIGHUP.

    The first line on standard output is the URL, once the chain serves.
    """
    with contextlib.suppress(KeyboardInterrupt), interruptible():
        try:
            chain = DevChain(
                kind, runtime=runtime, port=port, block_time_ms=block_time_ms or (2000 if kind == "node" else 1000)
            )
            try:
                chain.start_now()
                click.echo(chain.ws_url)
                click.echo(f"genesis {chain.genesis_hash}, {kind}, runtime {runtime}, log {chain.log_path}", err=True)
                while chain.is_running():
                    time.sleep(0.2)
                raise DevnetError(f"the chain ended by itself; {chain.log_tail()}")
            finally:
                chain.stop_now()
        except DevnetError as error:
            raise click.ClickException(str(error)) from error


@click.command()
@click.option("--apt", is_flag=True, help="First install the toolchain by apt-get where it is missing (needs root).")
def node_build(apt: bool) -> None:
    """Build the Substrate node into the cache (once; about 17 minutes) and print where its binary is."""
    from .node_process import ensure_node_binary, install_toolchain, is_built

    try:
        if apt and not is_built():
            install_toolchain()
        click.echo(str(ensure_node_binary()))
    except DevnetError as error:
        raise click.ClickException(str(error)) from error
