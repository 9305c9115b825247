"""What the packages agree on: records, Arrow schemas, artifacts and their manifests, storage, seeding.

Needs the standard library, numpy, pyarrow and fsspec, and imports no other package of the project.
"""
