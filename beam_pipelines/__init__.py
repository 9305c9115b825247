"""Apache Beam pipelines: ``synthesize`` and ``mine`` write augmented corpora, ``pack`` writes shards.

`transforms` holds one PTransform a file; the algorithms they wire stand beside it as plain modules without Beam.
"""
