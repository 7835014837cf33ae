"""The watcher: follows finality over several endpoints and yields verified views of the chain."""
