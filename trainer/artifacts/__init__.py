"""What outlives a machine: everything a run keeps in its store, and the rules for writing it.

Light: the laptop reads all of this too, so nothing in here may import torch, transformers or sky.

    store.py     the few operations that everything else needs, at any URI
    local.py     a directory as a store
    layout.py    every key of a run, written and parsed in one place
    manifest.py  what a checkpoint consists of, and the blobs it names
    validity.py  which checkpoints count: the rule that every reader applies
    fencing.py   who may write checkpoints, and how
    garbage.py   what may be deleted, and when
    journal.py   the write-once facts of a run
    metrics.py   the numbers of every step, each step once
"""
