"""Build the EGETKEY extension: `python -m attestation.egetkey.build [--out DIR]`. Needs a C compiler for x86-64."""

import argparse
import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).parent
FLAGS = ("-std=c11", "-O2", "-fPIC", "-fstack-protector-strong", "-Wall", "-Wextra", "-Werror")


def compiler() -> list[str]:
    """Return the C compiler: CC from the environment, else the one Python was built with."""
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")


def build(out: Path, extra: Sequence[str] = ()) -> Path:
    """Build `_egetkey.abi3.so` into folder `out` and return its path. Raises CalledProcessError."""
    target = out / "_egetkey.abi3.so"
    include = f"-I{sysconfig.get_path('include')}"
    # The file is measured, so it must not depend on the place or time of the build.
    reproducible = ["-g0", f"-ffile-prefix-map={SOURCE}=egetkey", "-Wl,--build-id=none"]
    sources = [str(SOURCE / name) for name in ("egetkey.c", "module.c")]
    command = [*compiler(), *FLAGS, *reproducible, *extra, include, "-shared", "-o", str(target), *sources]
    subprocess.run(command, check=True)  # noqa: S603 - fixed arguments, the operator's compiler
    return target


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m attestation.egetkey.build")
    parser.add_argument("--out", type=Path, default=SOURCE, help="folder for _egetkey.abi3.so")
    options = parser.parse_args()
    try:
        sys.stdout.write(f"{build(options.out)}\n")
    except (subprocess.CalledProcessError, OSError) as error:
        sys.stderr.write(f"the EGETKEY extension was not built: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
