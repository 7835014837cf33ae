"""Downloads releases into slots and runs nodes: fetch, unpack, verify, start, probe, stop; as processes or containers.

Pure modules decide and decode; the others touch disk, network and processes.
"""
