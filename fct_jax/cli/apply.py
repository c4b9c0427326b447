"""``fct-jax apply``."""

from fct_jax.cli import DONE
from fct_jax.cli.plan import add_gallery

FUNCTION = "fct_jax.upgrade.migration.upgrade:Upgrade.apply"
EXAMPLE = """
Translate the gallery to the new space, then take re-embedded vectors batch by batch. Killed or
interrupted at any moment, the same command goes on; the old gallery is never changed.

  fct-jax apply upgrade --reembed vectors_new          # or mymodel:embed_ids
  fct-jax apply upgrade --reembed 'http://host:8000/v1/embeddings?model=NAME' --texts texts.jsonl
  fct-jax apply upgrade --map map --gallery gallery    # translate only, without a plan

Of a store (--gallery postgresql://…, qdrant://…, lancedb://…, milvus://…) the new vectors go into a
table or collection beside it, whose index is built once; what the application writes meanwhile is
brought over. Readers are sent there by `fct-jax switch`.

  fct-jax apply upgrade --map map --gallery qdrant://host:6333/items && fct-jax switch upgrade
"""


def add_arguments(parser) -> None:
    """Add the arguments of the subcommand."""
    add_gallery(parser)
    parser.add_argument("--reembed", help="where new vectors come from: an EmbeddingSet, "
                        "module:function of ids, or the URL of an embeddings endpoint; "
                        "translate only if not given")  # fmt: skip
    parser.add_argument("--texts", help="what an endpoint embeds for each id: a .jsonl file of "
                        "id and text, or module:function; the ids if not given")  # fmt: skip
    parser.add_argument("--model", help="model of an endpoint, as the server calls it")
    parser.add_argument("--parallel", type=int, help="requests or calls at a time")
    parser.add_argument("--per-request", type=int, help="items of a request to an endpoint")
    parser.add_argument("--attempts", type=int, help="how often a request is tried")
    parser.add_argument("--timeout", type=float, help="seconds that an answer may take")
    parser.add_argument("--max-items", type=int, help="cap on items asked for, over all runs")
    parser.add_argument("--max-tokens", type=int, help="cap on tokens")
    parser.add_argument("--max-money", type=float, help="cap on cost, by the prices below")
    parser.add_argument("--cost-per-1000", type=float, help="price of 1,000 items")
    parser.add_argument("--cost-per-million-tokens", type=float, help="price of a million tokens")
    parser.add_argument("--batch-items", type=int, help="items that are re-embedded together")
    parser.add_argument("--max-batches", type=int, help="stop after so many, to go on later")
    parser.add_argument("--unchecked", action="store_true", help="go on although no known answers "
                        "can be checked")  # fmt: skip


def run(arguments):
    """Apply the plan; return (result, exit code)."""
    from fct_jax.upgrade import Upgrade
    from fct_jax.upgrade.migration.sides import place_of

    given = vars(arguments)
    workdir = given.pop("upgrade")
    made = Upgrade(workdir).apply(**given)
    name, count = place_of(made), len(made)
    if hasattr(made, "close"):
        made.close()  # a store
    print(f"{name}: {count:,} vectors, {made.meta['state']}")
    return {"gallery": name, "count": count, **made.meta}, DONE
