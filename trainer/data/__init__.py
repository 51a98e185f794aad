"""The corpus: reading conversations from files, counting them, and one that Python carries itself.

    json_stream.py  bytes -> JSON values one at a time, with the place of what is broken
    containers.py   files -> samples: compression, JSON, JSON lines, Parquet, as streams
    samples.py      one sample -> one Conversation, or the reason why not
    read.py         paths -> Corpus, which streams conversations and accounts for every sample
    stats.py        Corpus -> counts and a length histogram
    stdlib_docs.py  the documentation in the standard library as clean prose
    example.py      questions and answers made of it: the corpus to try vlaunch with

Light: nothing here imports torch or transformers; pyarrow and zstandard are imported where a file needs them.
"""
