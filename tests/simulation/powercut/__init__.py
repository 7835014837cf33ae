"""Real SQLite with simulated power cuts: all writes and syncs of a child are recorded, then cuts are replayed."""
