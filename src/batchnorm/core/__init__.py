"""The mathematics and the records: no I/O, no framework."""
