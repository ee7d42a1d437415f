"""Rewrites of canonical operators into what a dialect speaks; one file for each vocabulary they lower to."""
