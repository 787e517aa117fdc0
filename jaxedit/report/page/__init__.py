"""The report as one HTML page that needs no network: interactive figures, their numbers beside them."""

from jaxedit.report.page.source import Source, measure_folders, read_source
from jaxedit.report.page.write import write_page

__all__ = ["Source", "measure_folders", "read_source", "write_page"]
