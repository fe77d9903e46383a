"""Slow, literal forms of the papers' equations and the recorded numbers they are checked with."""
