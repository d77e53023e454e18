"""The command line: verbs, options and what a person sees. Imports nothing heavy."""
