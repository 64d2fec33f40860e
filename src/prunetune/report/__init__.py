"""A run folder as Markdown, HTML, figures, a model card; several runs as one table. Reads records, computes no result.

Others take `write.write_report` and `compare.compare`.
To add a table: one function in `tables`; a figure: one in `figures/`.
"""
