"""The key vault: handover protocols, the sealed store, the decision who may have keys, the vault's server and client.

Pure modules hold messages, transcripts and decisions; the others are shells around them (see PURE_MODULES).
"""

VERSION = "0.1.0"
"""Version of the vault, as it reports it over handover v1. It is not the project's: a new agent must not
change the vault's MRENCLAVE."""
