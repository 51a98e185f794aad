"""The corpus: reading conversations from files, counting them, and one that Python carries itself.

    json_stream.py  bytes -> JSON values one at a time, with the place of what is broken
    json_blocks.py  the same cut into blocks of whole samples, not decoded, for workers
    containers.py   files -> samples: compression, JSON, JSON lines, Parquet, as streams
    samples.py      one sample -> one Conversation, or the reason why not
    read.py         paths -> Corpus, which streams conversations and accounts for every sample
    stats.py        Corpus -> counts and a length histogram
    stdlib_docs.py  the documentation in the standard library as clean prose
    example.py      questions and answers made of it: the corpus to try vlaunch with
    buckets.py       files in buckets: copied here to be read, sent up whole
    chunks.py        input files as numbered chunks, the unit of work and of resuming
    token_count.py   how many tokens a conversation has when it is trained on, exact
    split.py         conversations to parts that fit the context; no round lost
    signatures.py    what is remembered of a conversation to find its duplicates
    dedupe.py        which conversations are duplicates, the longest kept
    contamination.py whether a conversation holds an evaluation question
    steps.py         a chunk of samples -> what is kept of it: a worker's whole job
    parts.py         the unfinished work, one file per chunk
    pool.py          worker processes that die with their parent
    pipeline.py      the whole pass: map in parts, reduce in order
    reduce.py        all parts -> output, rejected samples, manifest
    manifest.py      what a corpus was made from and how
    forms.py         conversations -> lines and files in any form and container
    sampling.py      some conversations at random; two sides by origin
    pictures.py      lengths as a PNG

Light: nothing here imports torch or transformers; pyarrow and zstandard are imported where a file needs them.
"""
