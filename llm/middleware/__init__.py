"""What stands between a client and its backend: each a `Middleware`; the order is drawn in `llm/factory.py`."""
