"""Report pages: read what run folders hold, and write the page."""
