"""Models: what your application knows and stores, apart from mail."""
