"""Command-line arguments for the images that a named run or function embeds."""


def add_images(parser) -> None:
    """Add the arguments that say which images a model embeds."""
    parser.add_argument("--data", help="data set to embed if OLD or NEW is a run, for example "
                        "digits")  # fmt: skip
    parser.add_argument("--data-dir", help="folder of the data set")
    parser.add_argument("--split", help="split of the data set: train or validation")


def embedded(given: dict, roles: tuple[str, ...]) -> dict:
    """Return the arguments with each run named for one of the roles replaced by its vectors."""
    from fct_jax.storage.named import is_model, vectors_of

    name, folder = given.pop("data", ""), given.pop("data_dir", "")
    split = given.pop("split", "train")
    data = None
    if name:
        from fct_jax import config as configs

        data = configs.data()
        data.name, data.dir = name, folder
    models = {role: given[role] for role in roles if role in given and is_model(given[role])}
    return {**given, **{r: vectors_of(w, r, data=data, split=split) for r, w in models.items()}}
