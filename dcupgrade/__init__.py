"""The agent: settings, command line, upgrade machine, journal and orchestrator. It never holds key material."""

__version__ = "0.1.0"
"""The one place of the project's version; the vault has its own, `keyvault.VERSION`."""
