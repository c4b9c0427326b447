"""A user's own store, which `open_store` finds by module:name."""


def opened(uri):
    """Return parts of the URI in place of a store."""
    return uri.host, uri.path
