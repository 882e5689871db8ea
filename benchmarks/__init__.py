"""Measurements: each checks its result before it times it. Results are committed; the README
quotes them.
"""
