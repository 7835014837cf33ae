"""SGX structures, measurement, network signatures, acceptance policy, and the drivers of a TEE.

Pure modules hold bytes and decisions; `artefact`, `simulated`, `driver` and `gramine` are the shells that touch
files, sockets and processes. Nothing is re-exported here, so that an enclave imports only what it uses.
"""
