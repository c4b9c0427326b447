"""``fct-jax doctor``."""

from fct_jax.cli import DONE, LOOK, MISTAKE
from fct_jax.errors import UserError

FUNCTION = "fct_jax.upgrade.checks.doctor:examine"
CLUSTER = "cluster"
EXAMPLE = """
Check a file of vectors before you trust it: rows, dimension, lengths, NaN and zero vectors,
repeated ids, copies, mixed vectors of two models, and what it probably is.

  fct-jax doctor vectors.npy
  fct-jax doctor qdrant://host:6333/items --sample 50000

Exit code: 0 if nothing was found, 2 with findings.

Check several hosts before they train as one: run the same command on all of them, at the same
time. It tells whether hosts, ports, shared folder, clocks, versions and devices are right.

  fct-jax doctor cluster --folder /shared/runs --config imagenet_backbone_new
  fct-jax doctor cluster --coordinator 10.0.0.1:1234 --process-id 0 --num-processes 2

The first form is for Cloud TPU, SLURM, GKE and Open MPI, which number the processes themselves.
Exit code: 0 if the hosts are ready, 1 with faults. (A file of that name is ./cluster.)
"""
_OF_VECTORS = ("sample", "id_column", "vector_column")
_OF_CLUSTER = ("coordinator", "process_id", "num_processes", "folder", "config", "timeout")


def add_arguments(parser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("where", metavar="VECTORS", help="a file or folder of vectors, or the URI "
                        f"of a store; or `{CLUSTER}`")  # fmt: skip
    parser.add_argument("--sample", type=int, help="number of rows drawn from a store")
    parser.add_argument("--id-column", help="name of the id column; found if not given")
    parser.add_argument("--vector-column", help="name of the vector column; found if not given")
    hosts = parser.add_argument_group("doctor cluster")
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, as the "
                       "other hosts see it")  # fmt: skip
    hosts.add_argument("--process-id", "--process_id", type=int, metavar="I",
                       help="number of this process, from 0")  # fmt: skip
    hosts.add_argument("--num-processes", "--num_processes", type=int, metavar="N",
                       help="how many processes there are")  # fmt: skip
    hosts.add_argument("--folder", help="the folder that all hosts must share")
    hosts.add_argument("--config", help="the run's config, which must be the same on all hosts")
    hosts.add_argument("--timeout", type=float, help="seconds to wait for the other hosts "
                       "(default: 30)")  # fmt: skip


def run(arguments):
    """Examine, print the findings, and return (result, exit code)."""
    given = dict(vars(arguments))
    cluster = given["where"] == CLUSTER
    wrong = [key for key in (_OF_VECTORS if cluster else _OF_CLUSTER) if key in given]
    if wrong:
        option = f"--{wrong[0].replace('_', '-')}"
        takes = "is for vectors" if cluster else f"is for `fct-jax doctor {CLUSTER}`"
        raise UserError(f"{option} {takes}")
    return _run_cluster(**given) if cluster else _run_vectors(**given)


def _run_cluster(where: str, **given):
    del where
    from fct_jax.cluster import examine

    found = examine(**given)
    found.table().show()
    for fault in found.faults:
        print(f"! {fault}")
    for what in found.unchecked:
        print(f"not checked: {what}")
    if not found.faults:
        print(f"the {len(found.processes)} processes are ready")
    return found._asdict(), MISTAKE if found.faults else DONE


def _run_vectors(**given):
    from fct_jax.upgrade.checks.doctor import examine

    found = examine(**given)
    shortest, mean, longest = found.lengths
    if found.looked_at < found.rows:
        print(f"a sample of {found.looked_at:,} rows was looked at")
    print(f"{found.name}: {found.rows:,} vectors of {found.dim} dimensions, {found.dtype}")
    print(f"lengths {shortest:.4g} to {longest:.4g}, mean {mean:.4g}")
    print(f"probably {found.likely}")
    for finding in found.findings:
        print(f"! {finding.kind}: {finding.text}")
    if not found.findings:
        print("no problems found")
    return found.to_json(), LOOK if found.findings else DONE
