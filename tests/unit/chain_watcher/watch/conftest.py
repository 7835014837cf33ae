"""A chain with proven finality and an endpoint of it; modules that need another chain define their own."""

from collections.abc import AsyncIterator

import pytest

from tests.doubles.chain_endpoint import FakeNode
from tests.doubles.proving import ProvenChain


@pytest.fixture
def chain() -> ProvenChain:
    return ProvenChain()


@pytest.fixture
async def node(chain: ProvenChain) -> AsyncIterator[FakeNode]:
    async with FakeNode(chain, grandpa=True) as running:
        yield running
