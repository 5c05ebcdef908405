"""One self-contained HTML file about one or more runs: curves, scores, and documents with what the poolers kept."""

from trainer.report.write import write_report

__all__ = ["write_report"]
