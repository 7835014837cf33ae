"""The agent: settings, command line, upgrade machine, journal and orchestrator. It never holds key material.

Pure modules (values and decisions; no I/O, clock or randomness) are named in ``PURE_MODULES``; a test walks
their imports.
"""
