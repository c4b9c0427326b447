"""``fct-jax completion``: a script for the shell, made by shtab."""

import argparse

from fct_jax import cli
from fct_jax.cli import DONE

EXAMPLE = """
Print a script that completes commands, options and files. To use it in every new shell:

  fct-jax completion bash >> ~/.bashrc
  fct-jax completion zsh > ~/.zsh/completions/_fct-jax
"""


def add_arguments(parser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell")


def run(arguments):
    """Print the script and return (result, exit code)."""
    import shtab

    from fct_jax.cli.running import build_parser

    whole = argparse.ArgumentParser(prog="fct-jax", description="Upgrade embedding models.")
    parts = whole.add_subparsers()
    for name, command in cli.COMMANDS.items():
        if hasattr(cli.load(name), "add_arguments"):
            parent = build_parser(name)
            part = parts.add_parser(name, help=command.help, parents=[parent], add_help=False)
            part.description = command.help
        else:
            parts.add_parser(name, help=command.help).add_argument("words", nargs="*")
    script = shtab.complete(whole, shell=arguments.shell)
    print(script)
    return {"script": script}, DONE
