"""Photographed cut-outs on photographs: a second world, made of packages that Debian and PyPI distribute."""
