"""Packaged experiments: `fct-jax train digits_fct --workdir DIR` takes one by name."""
