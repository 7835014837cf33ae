"""Enclave artefacts on the host: measure an image, read and write its SIGSTRUCT and files."""
