"""One writer: while the daemon runs, commands reach it through a Unix socket and it alone writes.

lock.py        who the daemon of a data folder is: a lock that dies with it
places.py      where its socket is
peers.py       who is at the other end of a connection
wire.py        requests, answers and errors as lines of JSON
operations.py  the closed table of what can be asked
server.py      answers, in the daemon
client.py      asks, in a command
remote.py      what a command holds instead of a Runtime: the same methods, carried out by the daemon
reach.py       which of the two a command gets
"""
