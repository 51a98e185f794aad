"""The training box: corpus, weights, model, loop, checkpoints.

Light half (no torch): errors, config, recipes, conversation, artifacts, data.
Run on the box with `python -m trainer --run URI`. Imports nothing else of ours.
"""
