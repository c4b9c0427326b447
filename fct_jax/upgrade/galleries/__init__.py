"""Forms that galleries are kept in, each with a reader and a writer."""
