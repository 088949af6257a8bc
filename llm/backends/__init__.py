"""Model backends, one file each; `llm/registry.py` imports one when it is first used."""
