"""The EGETKEY instruction for Python: a C extension, built by `python -m attestation.egetkey.build`.

It runs inside an SGX enclave only; elsewhere the instruction ends the process with an illegal-instruction signal.
"""
