"""PTransforms, one a file; each names the plain module that holds its logic."""
