"""The speed of batch normalization on the CPU, ours and the rivals': what `benchmarks/cpu.py` is made of.

``cases`` says what is timed, ``data`` on what and what is right, ``engines`` has one adapter a rival, ``worker`` is
the process an engine lives in, ``runner`` lets the processes take turns, ``summary`` makes ratios of their times,
``tables`` and ``plot`` show them, ``machine`` describes where it was.
"""
