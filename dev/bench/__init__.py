"""Benchmarks: sitq beside bare sqlite3 and its peers, every measurement in a process of its own."""
