"""Where the numbers in hand-written documents are from: tests/house/test_numbers.py holds each document to it.

A number of a measurement is computed from the file that the measurement left, where the claim says so; what nobody
measured is named with what it follows from. Tables that a command writes need no claim, nor does docs/results.md.
"""
