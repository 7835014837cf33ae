"""Connections to the chain's endpoints: JSON-RPC, one endpoint, the pool of endpoints, and fair turns between them."""
