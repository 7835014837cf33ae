"""Programs that the upgrade trials run inside the simulated TEE."""
