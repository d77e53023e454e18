"""Demonstrations of transfer learning: on digits that ship with scikit-learn, and on own images."""
