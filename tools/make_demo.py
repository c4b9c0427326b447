"""Make the vectors that `fct-jax demo` upgrades: handwritten digits by two small models.

  python tools/make_demo.py

The old model is trained on the digits 0 to 4, the new one on all ten; both embed the 1,000 training
and the 797 validation images. The output, fct_jax/demo/digits.npz, is part of the package.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))  # run as a file or as a module

from fct_jax import config as defaults  # noqa: E402
from fct_jax.embed.command import embed  # noqa: E402
from fct_jax.runtime.config_files import packaged_configs, read_config  # noqa: E402
from fct_jax.train.loop import train  # noqa: E402
from tools.script import Parser, status  # noqa: E402


def main(words) -> None:
    """Train both models, embed both splits, and write the file."""
    Parser(__doc__).parse_args(words)
    arrays = {}
    with tempfile.TemporaryDirectory() as folder:
        for model in ("old", "new"):
            run = Path(folder) / model
            train(read_config(packaged_configs()[f"digits_backbone_{model}"]), run)
            for split in ("train", "validation"):
                config = defaults.embed()
                config.model, config.split, config.data.name = str(run), split, "digits"
                found = embed(config, Path(folder) / f"{model}_{split}")
                arrays[f"{split}_{model}"] = np.asarray(found.vectors, np.float16)
                arrays[f"{split}_labels"] = np.asarray(found.labels, np.int8)
    out = REPOSITORY / "fct_jax" / "demo" / "digits.npz"
    out.parent.mkdir(exist_ok=True)
    np.savez_compressed(out, **arrays)
    print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(status(main))
