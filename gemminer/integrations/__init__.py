"""Tickets inside other frameworks: one file each, thin, over `gemminer.hold`. Each imports its own framework."""
