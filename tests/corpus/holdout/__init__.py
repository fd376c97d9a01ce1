"""Faults and sound oddities that were written down before the rules were tried on them."""
