"""A stand-in for CuPy on a machine without a GPU: see namespace.py."""
