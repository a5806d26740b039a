"""Closed-loop evaluation over suites of environments: episodes, statistics, one report."""
