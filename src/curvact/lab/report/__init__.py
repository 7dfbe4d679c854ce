"""Pages, tables and figures: results in, files out."""
