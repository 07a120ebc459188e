"""`make accuracy`: what the quantisers reach, on Gaussian matrices and on a trained transformer."""

import sys

from benchmarks.quantize import gaussian, trained

if __name__ == "__main__":
    sys.exit(gaussian.main() | trained.main())
