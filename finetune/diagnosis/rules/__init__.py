"""Rules of the diagnosis: pure functions from the evidence of a run to a finding, or None."""
