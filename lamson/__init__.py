"""Lamson, the Python mail server: write e-mail applications the way you write web applications."""

__version__ = "2.0.0"
