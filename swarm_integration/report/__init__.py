"""What a run directory shows afterwards: numbers, pictures, a trace.

`reading` turns files into records, `summary` records into numbers; `page`, `terminal`,
`png` and `trace` show them; `command` is `swarm-inference report`. Nothing here runs a
simulation or asks a model, and nothing trusts what a directory holds.
"""
