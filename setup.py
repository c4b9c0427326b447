"""Which packages a wheel holds: fct_jax, and configs/ as fct_jax.configs."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["fct_jax*"]), "fct_jax.configs"],
    package_dir={"fct_jax.configs": "configs"},
)
