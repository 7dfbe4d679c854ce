"""Tables, plots and the page: plain rows in, files out."""

from curvact.report.page import write_page
from curvact.report.plots import write_figures
from curvact.report.table import cells, groups_of, level_names, results_table, write_csv

__all__ = ["cells", "groups_of", "level_names", "results_table", "write_csv", "write_figures", "write_page"]
