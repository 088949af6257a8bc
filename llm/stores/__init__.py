"""Where replies are kept."""
