"""A run where people look at curves: W&B and TensorBoard.

The numbers of a run are in its store, each step once. What is here only shows them: a curve is made from what is
durable, so it is right by construction, and one that is lost is made again.
"""
