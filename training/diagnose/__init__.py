"""What training did to the sight of one policy or several, side by side, on one page."""

from training.diagnose.command import DiagnoseRequest, diagnose

__all__ = ["DiagnoseRequest", "diagnose"]
