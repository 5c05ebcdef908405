"""One self-contained HTML file: about runs (curves, scores, documents), or about documents that were summarized."""

from transpooler.trainer.report.write import check_page, render_documents, write_documents, write_report

__all__ = ["check_page", "render_documents", "write_documents", "write_report"]
