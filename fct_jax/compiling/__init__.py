"""Compile a config's programs for absent devices, to learn what memory and time a pod would need.

The real compiler of TPUs runs on any machine (extra ``tpu``). It takes shapes instead of data, so
neither a data set nor a trained model is needed:

    from fct_jax.compiling import compile_config

    for found in compile_config(config, "v5e:4x4"):
        print(found.name, found.memory, found.seconds)
"""

from fct_jax.compiling.compiling import Compiled, compile_config, compile_programs

__all__ = ["Compiled", "compile_config", "compile_programs"]
