"""The key vault: handover protocols, the sealed store, the decision who may have keys, the vault's server and client.

Pure modules hold messages, transcripts and decisions; the others are shells around them (see PURE_MODULES).
"""

VERSION = "0.1.0"
"""Version of the vault, as it tells it over handover v1; the same as the project's."""
