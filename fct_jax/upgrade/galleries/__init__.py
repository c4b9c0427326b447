"""The forms of galleries: each is a row of FORMS and one file with reader and writer."""

from fct_jax.upgrade.galleries.forms import (
    OBJECT_STORES,
    Form,
    either,
    folder_with,
    numbered_npy,
    starts,
    suffix,
    uri,
)

_HERE = "fct_jax.upgrade.galleries"

# A path belongs to the first form of this order that recognises it. EmbeddingSets, Faiss files and
# Parquet are written in their own form; galleries of the other forms become EmbeddingSets.
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
            "npy",
            "a .npy or .npz file",
            suffix(".npy", ".npz"),
            f"{_HERE}.npy:NpyGallery",
        ),
        Form(
            "vecs",
            "an .fvecs, .bvecs, .ivecs, .fbin, .u8bin or .i8bin file",
            suffix(".fvecs", ".bvecs", ".ivecs", ".fbin", ".u8bin", ".i8bin"),
            f"{_HERE}.vecs:VecsGallery",
        ),
        Form(
            "hdf5",
            "an HDF5 file (.hdf5, .h5)",
            suffix(".hdf5", ".h5"),
            f"{_HERE}.hdf5:Hdf5Gallery",
            extra="hdf5",
        ),
        Form(
            "text",
            "a CSV or JSON lines file (.csv, .tsv, .jsonl, also .gz)",
            either(
                suffix(".csv", ".tsv", ".csv.gz", ".tsv.gz"),
                suffix(".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"),
                folder_with("*.csv"),
                folder_with("*.jsonl"),
            ),
            f"{_HERE}.text_tables:TextGallery",
        ),
        Form(
            "pgcopy",
            "a binary COPY of PostgreSQL",
            starts(b"PGCOPY\n"),
            f"{_HERE}.pgcopy_file:CopyGallery",
        ),
        Form(
            "faiss",
            "a Faiss file (.faiss, .index)",
            either(
                suffix(".faiss", ".index"),
                starts(b"Ix", b"IH", b"Iw", b"IB", b"IN"),
                folder_with("index.faiss"),
            ),
            f"{_HERE}.faiss_file:FaissGallery",
        ),
        Form(
            "lance",
            "a Lance dataset",
            folder_with("_versions"),
            f"{_HERE}.lance_folder:LanceGallery",
            extra="lance",
        ),
        Form(
            "arrow",
            "an Arrow file or a Hugging Face dataset",
            either(
                suffix(".arrow", ".feather"),
                folder_with("*.arrow"),
                folder_with("dataset_dict.json"),
            ),
            f"{_HERE}.arrow_files:ArrowGallery",
        ),
        Form(
            "shards",
            "a folder of numbered .npy files",
            numbered_npy,
            f"{_HERE}.shards:ShardsGallery",
        ),
        Form(
            "parquet",
            "a .parquet file or a folder of such files (both also s3://, gs://, hf://)",
            either(
                suffix(".parquet"),
                folder_with("**/*.parquet"),
                uri(*OBJECT_STORES),
            ),
            f"{_HERE}.parquet:ParquetGallery",
        ),
    )
}

__all__ = ["FORMS", "Form", "either", "folder_with", "starts", "suffix", "uri"]
