"""Placeholder while the report is written."""
def write_report(folder, **_): 
    (folder / "report.html").write_text("x")
