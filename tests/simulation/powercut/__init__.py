"""Real SQLite over a disk that forgets: every write and sync of a child is recorded, then power cuts are replayed."""
