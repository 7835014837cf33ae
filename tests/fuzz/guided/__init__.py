"""Coverage-guided fuzzing: every decoder that meets outside bytes, as a function of bytes; `make fuzz` runs them."""
