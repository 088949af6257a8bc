"""Seeing what happens: log lines, metrics and health, each an adapter over the same events."""
