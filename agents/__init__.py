"""Agents: small programs that look at real data and propose what a person may approve."""
