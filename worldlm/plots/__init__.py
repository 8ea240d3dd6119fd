"""Plots of topologies and of runs, each a pure function from plain data to a figure. No torch."""
