"""Coverage-guided fuzzing (`make fuzz`): every decoder of outside bytes, as a function of bytes."""
