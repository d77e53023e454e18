"""Pictures of a report, as plain values: data URIs and numbers."""
