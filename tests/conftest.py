"""Fixtures every folder of tests may use."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VECTORS = ROOT.parent / "shared" / "vectors"


@pytest.fixture(scope="session")
def vectors() -> Path:
    """Folder of known answers made elsewhere; the test is skipped, with a word, where they are absent."""
    if not VECTORS.is_dir():
        pytest.skip("the known-answer vectors are not beside this checkout (../shared/vectors)")
    return VECTORS
