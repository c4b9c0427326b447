"""Change the embedding model of a retrieval service without re-embedding its gallery."""
