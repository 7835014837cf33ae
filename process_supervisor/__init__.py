"""Download releases into slots, and run nodes as processes or containers: fetch, unpack, verify, start, probe, stop.

Pure modules decide and decode; the others touch disk, network and processes.
"""
