"""SWARM runs through the inference scheduler; the only package that knows SWARM.

`cli.py` is the `swarm` command, `run.py` one run from its configuration to its
manifest, `driver.py` the simulation step by step, `rounds.py` where the agents'
questions meet the scheduler, `compat.py` every private name of SWARM.
"""
