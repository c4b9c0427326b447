"""``fct-jax apply``."""

from fct_jax.cli import DONE
from fct_jax.cli.plan import add_gallery

FUNCTION = "fct_jax.upgrade.migration.upgrade:Upgrade.apply"
EXAMPLE = """
Translate the gallery to the new space, then replace its vectors by re-embedded ones, batch by
batch. After a kill or an interrupt the same command resumes; the old gallery is never changed.

  fct-jax apply upgrade --reembed vectors_new          # or mymodel:embed_ids
  fct-jax apply upgrade --reembed 'http://host:8000/v1/embeddings?model=NAME' --texts texts.jsonl
  fct-jax apply upgrade --map map --gallery gallery    # translate only, without a plan

A large gallery can be translated by several processes, on one host or many; each takes its part of
the pieces, and whatever is published counts. `fct-jax status` shows all of them.

  for n in 1 2 3 4; do fct-jax apply upgrade --map map --gallery gallery --part $n/4 & done; wait
  fct-jax apply upgrade --part auto                    # in a SLURM array or a Kubernetes Job
  fct-jax apply upgrade --engine ray --address auto --reembed mymodel:embed --gpus-per-worker 1

For a store (--gallery postgresql://…, qdrant://…, lancedb://…, milvus://…) the new vectors go into
a table or collection beside it, whose index is built once; what the application writes meanwhile is
brought over. `fct-jax switch` then sends the readers there.

  fct-jax apply upgrade --map map --gallery qdrant://host:6333/items && fct-jax switch upgrade
"""


def add_arguments(parser) -> None:
    """Add the arguments of the subcommand."""
    add_gallery(parser)
    parser.add_argument("--reembed", help="source of new vectors: an EmbeddingSet, "
                        "module:function of ids, or the URL of an embeddings endpoint; "
                        "without it the gallery is only translated")  # fmt: skip
    parser.add_argument("--texts", help="text that an endpoint embeds for each id: a .jsonl file "
                        "with id and text, or module:function; without it the ids are "
                        "embedded")  # fmt: skip
    parser.add_argument("--dtype", help="how the new gallery stores its vectors: float32, "
                        "float16, int8 or binary (one bit a dimension), whose recall assess states;"
                        " without it as the old gallery does")  # fmt: skip
    parser.add_argument("--model", help="the endpoint's model, by its name on the server")
    parser.add_argument("--parallel", type=int, help="number of requests or calls at a time")
    parser.add_argument("--per-request", type=int, help="items in one request to an endpoint")
    parser.add_argument("--attempts", type=int, help="how often to try a request")
    parser.add_argument("--timeout", type=float, help="seconds to wait for an answer")
    parser.add_argument("--max-items", type=int, help="limit on requested items, over all runs")
    parser.add_argument("--max-tokens", type=int, help="limit on tokens")
    parser.add_argument("--max-money", type=float, help="limit on cost, by the prices below")
    parser.add_argument("--cost-per-1000", type=float, help="price of 1,000 items")
    parser.add_argument("--cost-per-million-tokens", type=float, help="price of a million tokens")
    parser.add_argument("--batch-items", type=int, help="number of items re-embedded together")
    parser.add_argument("--max-batches", type=int, help="stop after this number of batches; the "
                        "same command resumes later")  # fmt: skip
    parser.add_argument("--part", metavar="N/COUNT", help="translate one of COUNT parts, which "
                        "count from 1; auto: the number is that of a SLURM array or a Kubernetes "
                        "Indexed Job (auto/COUNT where it gives no count)")  # fmt: skip
    parser.add_argument("--output", help="URI of the new gallery in an object store, such as "
                        "s3://bucket/new, for a Parquet gallery; without it the gallery is in "
                        "UPGRADE")  # fmt: skip
    parser.add_argument("--engine", help="ray: translate on the workers of a Ray cluster, and ask "
                        "a function for new vectors there")  # fmt: skip
    parser.add_argument("--address", help="address of the cluster: host:6379, auto, or "
                        "ray://host:10001; without it Ray is started on this machine")  # fmt: skip
    parser.add_argument("--workers", type=int, help="number of workers of the engine; without it "
                        "one for each CPU, or GPU")  # fmt: skip
    parser.add_argument("--gpus-per-worker", type=float, help="GPUs of each worker that holds a "
                        "model; 0.5: two workers share one")  # fmt: skip
    parser.add_argument("--unchecked", action="store_true", help="continue even if there are no "
                        "known answers to check")  # fmt: skip


def run(arguments):
    """Apply the plan; return (result, exit code)."""
    from fct_jax.upgrade import Upgrade
    from fct_jax.upgrade.migration.sides import place_of
    from fct_jax.upgrade.migration.status import Status

    given = vars(arguments)
    workdir = given.pop("upgrade")
    made = Upgrade(workdir).apply(**given)
    if isinstance(made, Status):
        print(made)  # other parts are not done
        return made.to_json(), DONE
    name, count = place_of(made), len(made)
    if hasattr(made, "close"):
        made.close()  # a store
    print(f"{name}: {count:,} vectors, {made.meta['state']}")
    return {"gallery": name, "count": count, **made.meta}, DONE
