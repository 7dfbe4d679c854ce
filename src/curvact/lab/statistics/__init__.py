"""Questions to a table of runs, and the tests behind their answers."""
