"""Output for people and programs: HTTP API and page, metrics, webhooks, systemd, logs."""
