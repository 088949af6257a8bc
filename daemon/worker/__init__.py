"""Agents in processes of their own, so that one that blocks, spins, leaks, forks or crashes harms nobody.

    parent:  agent.py     IsolatedAgent: a BaseAgent whose methods are carried out in a worker
             host.py      Worker: the conversation with one worker; asks the model in its stead
             process.py   WorkerProcess: starts the process, and leaves nothing of it behind
    both:    limits.py    what a worker may use, and what its end means, in words
             wire.py      the messages: errors, vectors, what an agent returned
    child:   __main__.py  the program, run by path
             child.py     loads the agent, does what it is told, one thing after the other
             proxy.py     the model as the agent sees it there

The two speak lines of `daemon.plain` over a socket pair that is the child's standard input. One worker lives
for one run or one decision. No key is ever in it: model calls are made by the parent.
"""
