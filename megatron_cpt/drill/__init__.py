"""The drill: a deliberately bad continuation of a judged run, which the gate must catch and the rollback must undo.

It wires stages as `stages.py` does. Everything happens in a copy that shares the run's files; of the run itself only the bill grows.
"""
