"""The symbolic models of docs/formal, their cases, and Verifpal, which answers them."""

import json
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

from devnet.tools import DevnetError, install_once, run_tool

MODELS = Path(__file__).resolve().parents[2] / "docs" / "formal"
VERSION = "1.6.7"
TIMEOUT_S = 1800


@dataclass(frozen=True)
class Case:
    """A model with a change made to it, and the queries on which an attack must be found."""

    model: str
    name: str
    sessions: int
    replace: tuple[tuple[str, str], ...]
    attacks: frozenset[str]
    reached: frozenset[str]

    def text(self) -> str:
        """The model's text with the change. Raises ValueError if what is to be changed is not in it."""
        text = (MODELS / f"{self.model}.vp").read_text(encoding="utf-8")
        for old, new in self.replace:
            if old not in text:
                raise ValueError(f"{self.model}, {self.name}: {old!r} is not in the model")
            text = text.replace(old, new)
        return text


def cases() -> list[Case]:
    """Every case of docs/formal/cases.toml."""
    with (MODELS / "cases.toml").open("rb") as file:
        table = tomllib.load(file)
    return [
        Case(
            model,
            case["name"],
            case["sessions"],
            tuple((old, new) for old, new in case.get("replace", [])),
            frozenset(case["attacks"]),
            frozenset(entry["reached"]),
        )
        for model, entry in table.items()
        for case in entry["case"]
    ]


def find_verifpal() -> Path | None:
    """Verifpal of the pinned version: built by cargo into the cache on first use; None where there is no cargo."""
    cargo = shutil.which("cargo")
    if cargo is None:
        return None

    def build(part: Path) -> None:
        argv = ["nice", cargo, "install", "verifpal", "--version", VERSION, "--locked", "--ignore-rust-version"]
        # Its Cargo.toml asks for a newer Rust than it needs: 1.95 builds it.
        run_tool([*argv, "--quiet", "--root", str(part)], what=f"building Verifpal {VERSION}")

    return install_once(f"verifpal-{VERSION}", build) / "bin" / "verifpal"


def attacks_found(verifpal: Path, case: Case, folder: Path) -> set[str]:
    """The queries of a case that Verifpal finds an attack on. Raises DevnetError for a model that it refuses."""
    file = folder / f"{case.model}.vp"
    file.write_text(case.text(), encoding="utf-8")
    argv = ["nice", str(verifpal), "verify", str(file), "--sessions", str(case.sessions), "--format", "json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    answer = json.loads(done.stdout)["models"][0]
    if not answer["ok"]:
        raise DevnetError(f"{case.model}, {case.name}: {answer['error']}")
    return {query["query"] for query in answer["analysis"]["queries"] if query["resolved"]}
