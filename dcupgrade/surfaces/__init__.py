"""What people and machines see: HTTP API and page, metrics, webhooks, systemd, logs."""
