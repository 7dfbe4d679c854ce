"""The report of a sweep: one offline page, tables and figures."""
