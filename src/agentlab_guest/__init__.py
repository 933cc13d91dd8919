"""The program that runs inside a sandbox.  Standard library only; shipped as one reproducible .pyz."""

__version__ = "0.1.0"
