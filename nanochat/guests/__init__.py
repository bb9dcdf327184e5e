"""Programs that run as processes of their own in the sandbox, by path: nothing of nanochat imports them, nor they it.

`channel.py` is what they share; `candidate.py` holds a model's code and answers calls; `judge.py` runs the tests;
`program.py` runs one whole program; `libraries.py` names the shared libraries that a Python needs. Standard library
only, and few imports: each of them is started for every answer that is graded (nanochat/execution.py starts them).
"""
