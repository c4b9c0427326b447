"""Command-line arguments for the columns of tables that hold a sample."""


def add_columns(parser) -> None:
    """Add the arguments that name the columns of ids and of vectors."""
    parser.add_argument("--id-column", help="column of ids in a table; OLD,NEW if they differ; "
                        "found if not given")  # fmt: skip
    parser.add_argument("--vector-column", help="column of vectors in a table; OLD,NEW if they "
                        "differ; found if not given")  # fmt: skip


def read_columns(given: dict, roles: tuple[str, ...]) -> dict:
    """Return the arguments with the tables named for the roles replaced by their columns.

    Without a name of a column nothing is replaced. Of two names with a comma the first is for the
    roles of the old model, whose names end in "old". Raises UserError for a column that a table
    does not have.
    """
    from fct_jax.storage.named import vectors_of

    columns = {key: given.pop(key, None) for key in ("id_column", "vector_column")}
    if not any(columns.values()):
        return given
    found = {}
    for role in roles:
        if given.get(role) is None:
            continue
        place = 0 if role.endswith("old") else -1
        mine = {key: name and name.split(",")[place] for key, name in columns.items()}
        found[role] = vectors_of(given[role], role, **mine)
    return {**given, **found}
