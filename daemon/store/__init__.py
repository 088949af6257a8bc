"""What must last: proposals and the decisions about them, runs and their model calls, in one SQLite file.

Nothing is imported here: SQLAlchemy costs 0.2 s of CPU and is loaded by whoever opens a database.
"""
