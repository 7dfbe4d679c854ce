"""Figures and tables of `curvact analyze`: one file an analysis."""
