"""The vault's measured program: decisions, record, chain state, the agent's API."""
