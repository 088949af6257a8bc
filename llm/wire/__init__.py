"""Our types to each server's JSON and back: pure functions, no I/O."""
