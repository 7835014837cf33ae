"""Chain storage in, `VerifiedRelease` out: proofs, finality, and the watcher of the DC chain.

The pure modules hold bytes, values and decisions (no I/O, clock or randomness); the keyvault verifies evidence
with the same code inside its own process. The other modules are asyncio shells around them.
"""
