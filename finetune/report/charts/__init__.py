"""Charts of the page: data for the script, and geometry for SVG."""
