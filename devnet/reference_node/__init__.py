"""Reference DCNode: an object store over HTTP. Its data is encrypted with keys that exist only inside its enclave.

It runs from a measured image (a zipapp of these modules, `attestation`, `keyvault` and `node_policy.json`)
under a TEE driver. In development that TEE is simulated, and `/health` says so.
"""
