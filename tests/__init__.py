"""The tests: a folder for each of the package's rooms; run them from the root."""
