"""The handover protocols, v2 and v1: what the vault and the nodes share."""
