"""A wheel holds configs/ as fct_jax.configs; in a checkout they stand beside the package."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copy the configs into the built package; an editable one has them in the checkout."""

    def run(self):
        """Build the package, then add the configs."""
        super().run()
        if not self.editable_mode:
            configs = Path(self.build_lib) / "fct_jax" / "configs"
            shutil.copytree("configs", configs, ignore=shutil.ignore_patterns("__pycache__"))


setup(packages=find_packages(include=["fct_jax*"]), cmdclass={"build_py": BuildWithConfigs})
