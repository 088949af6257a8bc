"""The programs that run an engine in a child process; of ours they import only their own parts.

They are run by path and never imported by the rest of the package; the other end is `llm.backends.child`.
`mlx_worker.py` is the program for mlx-lm, the other `mlx_*` modules are its parts.
"""
