"""ssljax: data-efficient and self-supervised image learning in JAX, one readable file a paper."""

__version__ = "0.1.0"
