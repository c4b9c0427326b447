"""Forms that galleries are kept in: each is a row of FORMS and one file with reader and writer."""

from fct_jax.upgrade.galleries.forms import Form, either, folder_with, starts, suffix, uri

_HERE = "fct_jax.upgrade.galleries"

# Asked in this order which of them a path is.
FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        Form(
            "set",
            "an EmbeddingSet",
            folder_with("vectors.npy"),
            f"{_HERE}.embedding_set:SetGallery",
        ),
        Form(
            "faiss",
            "a Faiss file (.faiss, .index)",
            either(
                suffix(".faiss", ".index"),
                starts(b"Ix", b"IH", b"Iw", b"IB"),
                folder_with("index.faiss"),
            ),
            f"{_HERE}.faiss_file:FaissGallery",
        ),
        Form(
            "parquet",
            "a .parquet file or a folder of such (also s3://, gs://, hf://)",
            either(
                suffix(".parquet"),
                folder_with("**/*.parquet"),
                uri("s3", "gs", "gcs", "hf", "file"),
            ),
            f"{_HERE}.parquet:ParquetGallery",
        ),
    )
}

__all__ = ["FORMS", "Form", "either", "folder_with", "starts", "suffix", "uri"]
