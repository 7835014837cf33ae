"""The EGETKEY instruction for Python: a C extension, built by `python -m attestation.egetkey.build`.

It works only inside an SGX enclave. Elsewhere the instruction ends the process with an illegal-instruction signal.
"""
