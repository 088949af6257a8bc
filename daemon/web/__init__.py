"""The endpoints that the daemon serves on this machine: metrics and health now, the review pages later."""
