"""Images by which a run, or a function of images, stands for vectors on the command line."""


def add_images(parser) -> None:
    """Add the arguments that say which images a model embeds."""
    parser.add_argument("--data", help="where a run is named as OLD or NEW: the data set that it "
                        "embeds, digits for example")  # fmt: skip
    parser.add_argument("--data-dir", help="folder of the data set")
    parser.add_argument("--split", help="train or validation")


def embedded(given: dict, roles: tuple[str, ...]) -> dict:
    """Return the arguments with vectors in place of each run that is named for one of the roles."""
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
