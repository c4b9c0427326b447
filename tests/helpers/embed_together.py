"""Embeds, transforms and fills the cache; test_embed_shards.py runs it as several processes.

python tests/helpers/embed_together.py FOLDER PORT PROCESS COUNT
"""

import sys
from pathlib import Path

import tiny_models
from ml_collections import ConfigDict
from patience import LONG

from fct_jax import config as configs
from fct_jax.embed.command import embed
from fct_jax.embed.images import embeddings_of
from fct_jax.embed.statistics import write_statistics
from fct_jax.embed.transform import transform_set
from fct_jax.frozen.model import load_model
from fct_jax.runtime import processes
from fct_jax.storage.embedding_set import EmbeddingSet

BATCH, SHARD = 40, 160


def embed_config(runs: Path) -> ConfigDict:
    """Return a config that embeds digits with the untrained backbone."""
    config = configs.embed()
    config.model = str(runs / "backbone")
    config.batch_size, config.shard_size = BATCH, SHARD
    config.class_statistics = True
    return config


def work(runs: Path, out: Path) -> None:
    """Do everything that the processes do together."""
    embed(embed_config(runs), out / "images")
    transformer = load_model(runs / "transformation")
    transform_set(transformer, EmbeddingSet.read(runs / "old"), None, out / "moved", BATCH, SHARD)
    config = configs.transformation()
    config.callable_embeddings = str(out / "cache")
    for _ in range(2):
        cached = embeddings_of("tiny_models:pixels", "old", config, "validation", view=1)
    write_statistics(cached.name, None)
    write_statistics(cached.name, None)


def main() -> None:
    """Run the command."""
    folder, (port, process, count) = Path(sys.argv[1]), map(int, sys.argv[2:])
    processes.start(f"localhost:{port}", process, count, timeout=LONG)
    work(folder, folder / "together")
    processes.barrier("end")
    print(tiny_models.__name__, processes.count())


if __name__ == "__main__":
    main()
