"""The simulated TEE: a software CPU with root keys of its own. `python -m attestation.simulated` starts it."""
