"""The programs that run an engine in a child process; they import only it and the standard library.

They are run by path and never imported by the rest of the package; the other end is `llm.backends.child`.
"""
