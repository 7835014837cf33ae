"""Reference DCNode: an object store over HTTP whose data are encrypted under keys that exist only inside its enclave.

It is run from a measured image (a zipapp of these modules, ``attestation``, ``keyvault`` and ``node_policy.json``)
under a TEE driver. In development that TEE is simulated, and the node says so in every answer about its health.
"""
