"""What commands print: tables, HTML pages, plots, progress."""
