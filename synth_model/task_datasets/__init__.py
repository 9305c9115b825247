"""Context-based task datasets: where texts, questions and answers stand in each set's own files, and their conversion.

`table` reads the one declarative table (``datasets.yaml``), `task_files` reads files, `conversion` turns what stands in
them into texts with instruction-response pairs, `wordings` is the small language that the table is written in.
"""
