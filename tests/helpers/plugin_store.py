"""A store of one's own, as `open_store` takes it by module:name."""


def opened(uri):
    """The parts of the URI instead of a store."""
    return uri.host, uri.path
