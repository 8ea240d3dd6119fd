"""A small world for the command line: two texts, and the beginning of a recipe that reads them."""

from pathlib import Path

BEGINNING = r"""
federation: {topology: shore.yaml}
model:
  architecture: {num_blocks: 2, d_model: 16, num_heads: 2, max_seq_len: 16, vocab_size: 257}
  split: {keys: ['blocks\.1\.(norm_1|attn)\.'], values: ['blocks\.1\.', 'norm_f\.']}
  optimizer: {lr: 6e-3, warmup_steps: 2}
data:
  cache_dir: CACHE
  batch_size: 4
  corpora:
    hills: {class_path: worldlm.data.TextFiles, init_args: {train: hills.txt, validation: hills_too.txt}}
    sea: {class_path: worldlm.data.TextFiles, init_args: {train: sea.txt, validation: sea_too.txt}}
""".lstrip()
"""The beginning of a recipe. Tests add the seed, the trainer and the callbacks."""


def write_toy_world(folder: Path, topology: str, recipe: str, cache: str = "cache") -> Path:
    """Write texts, `shore.yaml` and `tiny.yaml`, and return the path of the recipe `tiny.yaml`.

    Args:
        folder: The folder to write into.
        topology: The content of `shore.yaml`, with the corpora `hills` and `sea`.
        recipe: The content of `tiny.yaml`, including `BEGINNING`.
        cache: The folder of packed text.
    """
    (folder / "shore.yaml").write_text(topology)
    for name, words in {"hills": "up and down the hill ", "sea": "wave after wave, salt; "}.items():
        (folder / f"{name}.txt").write_text(words * 60)
        (folder / f"{name}_too.txt").write_text(words * 10 + "the end")
    path = folder / "tiny.yaml"
    path.write_text(recipe.replace("CACHE", cache))
    return path
