"""`swarm-inference doctor`: what is installed, what this machine has, and whether a run would go.

Changes nothing without `--fix`, starts no simulation and no server, loads no model and sends
no prompt. `findings` is what it says, `case` what it is asked about, the other modules are the
checks.
"""
