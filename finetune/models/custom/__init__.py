"""Networks of one's own: their import, their creation, and what timm's contract needs."""
