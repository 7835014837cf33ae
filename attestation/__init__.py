"""SGX structures, measurement, network signatures, acceptance policy, and the drivers of a TEE.

The modules of this folder are pure: bytes and decisions. `artefact/`, `simulated/` and `tee/` work with files, sockets
and processes. Nothing is re-exported here, so that an enclave imports only what it uses.
"""
