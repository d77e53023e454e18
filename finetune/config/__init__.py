"""What the user asked for, and what follows from it by pure rules. Imports no torch."""
