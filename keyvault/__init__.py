"""The key vault: handover protocols, the sealed store, the decision who may have keys, the vault's server and client.

Pure modules hold messages, transcripts and decisions; the others are shells around them (see PURE_MODULES).
"""

PURE_MODULES: tuple[str, ...] = (
    "errors",
    "keyset",
    "ports",
    "messages",
    "transcript",
    "handover",
    "evidence",
    "proven",
    "facts",
    "core",
    "sealed",
    "policy_file",
)
