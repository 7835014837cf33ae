"""The agent: settings, command line, upgrade machine, journal and orchestrator. It never holds key material."""

__version__ = "0.1.0"
