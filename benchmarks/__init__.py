"""Every figure of embedstore beside what it is compared with, measured in the same run: ``python -m benchmarks``."""
