"""One self-contained HTML file: about runs (curves, scores, documents), or about documents that were summarized."""

from transpooler.trainer.report.write import render_documents, write_documents, write_report

__all__ = ["render_documents", "write_documents", "write_report"]
