"""Connections to the chain's endpoints: JSON-RPC, one endpoint, the pool, and whose turn it is."""
