"""What stands between a client and its backend; the order is drawn in `llm/factory.py`."""
