"""The daemon: runs agents on a schedule, keeps their proposals, and applies what a person approved."""
