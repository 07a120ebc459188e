"""The experiments of the CodeGEMM paper on this machine, its tables and ours side by side."""

NAMES = ("table2", "table3", "table6", "table7", "table8", "table9", "table10", "figure4")
ALL = "all"
