"""stylenb: take Stable Diffusion apart, teach it a style, prove with numbers that it worked.

Names are looked up on first use, so that `import stylenb` costs nothing and works while
packages are still missing (the set-up cell of a notebook needs `stylenb.install_missing` then).
"""

from importlib import import_module

_EXPORTS = {
    "StylenbError": "errors",
    "open_photo": "photos",
    "read_folder": "photos",
    "sample_photo": "photos",
    "SAMPLE_PHOTOS": "photos",
    "to_tensor": "photos",
    "to_pictures": "photos",
    "Base": "base",
    "load": "base",
    "stylize": "inference",
    "stylize_folder": "inference",
    "available_styles": "lora",
    "add_lora": "lora",
    "export_lora": "lora",
    "load_lora": "lora",
    "merge_lora": "lora",
    "remove_lora": "lora",
    "save_lora": "lora",
    "set_scale": "lora",
    "unmerge_lora": "lora",
    "train_style": "training",
    "Settings": "training",
    "train_dreambooth": "dreambooth",
    "DreamBoothSettings": "dreambooth",
    "generate": "dreambooth",
    "load_dreambooth": "dreambooth",
    "save_dreambooth": "dreambooth",
    "undo_dreambooth": "dreambooth",
    "train_embedding": "textual_inversion",
    "EmbeddingSettings": "textual_inversion",
    "load_embedding": "textual_inversion",
    "judge": "scores",
    "load_judge": "scores",
    "lpips_distance": "scores",
    "edge_agreement": "scores",
    "truth_distance": "scores",
    "psnr": "scores",
    "sweep": "scores",
    "pareto": "scores",
    "install_missing": "doctor",
    "report": "doctor",
}

__version__ = "0.1.0"
__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'stylenb' has no attribute {name!r}")
    value = getattr(import_module(f"stylenb.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
