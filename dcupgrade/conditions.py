"""Names of halted conditions and of reasons, with their meaning."""

from __future__ import annotations

HALTED_CODES: dict[str, str] = {
    "PREVIOUS_REVOKED": "the upgrade must be undone, but the network has revoked the version to go back to",
    "SOURCE_WONT_START": "the previous version does not start",
    "SOURCE_SLOT_DAMAGED": "the previous version's files are missing or were changed",
    "KEYS_UNREACHABLE": "the previous version asks for its keys and the vault cannot give them now",
    "NO_KEYS_ANYWHERE": "neither the previous version nor the vault can unseal the keys",
    "VAULT_REPLACED": "the vault's store belongs to another build of the vault",
    "DATA_LOCKED": "another process holds the data folder",
    "TARGET_WONT_STOP": "the new version's process cannot be stopped",
    "FIRST_INSTALL_FAILED": "the first version of this node did not come up",
}
"""Conditions in which the machine waits for a person; docs/runbook/halted.md has an entry for each."""


REASON_CODES: dict[str, str] = {
    "SUPERSEDED": "the chain names another version now",
    "TARGET_REVOKED": "the network has withdrawn its signature from the new version",
    "OPERATOR_REVERT": "an operator asked to go back",
    "BUDGET_SPENT": "the release failed as often as the settings allow",
    "NODE_EXITED": "the node's process ended by itself",
    "HOST_REBOOTED": "the node's process ended because the machine was restarted",
    "REVERT_IMPOSSIBLE": "there is no previous version to go back to, or its retention time is over",
}
"""Reasons that the machine itself gives for leaving the straight path."""
