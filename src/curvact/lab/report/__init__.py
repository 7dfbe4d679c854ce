"""Tables, plots and the page: plain rows in, files out."""

from curvact.lab.report.page import write_page
from curvact.lab.report.plots import write_figures
from curvact.lab.report.table import cells, groups_of, level_names, results_table, write_csv

__all__ = ["cells", "groups_of", "level_names", "results_table", "write_csv", "write_figures", "write_page"]
