"""Apache Beam pipelines: ``synthesize`` writes an augmented corpus, ``pack`` writes shards.

`transforms` holds one PTransform a file; the algorithms they wire stand beside it as plain modules without Beam.
"""
