"""stylenb: take Stable Diffusion apart, teach it a style, prove with numbers that it worked.

Names are looked up on first use, so that `import stylenb` costs nothing and works while
packages are still missing (the set-up cell of a notebook needs `stylenb.install_missing` then).
"""

from importlib import import_module

_NAMES = {  # module: what of it is at hand as stylenb.NAME
    "errors": "StylenbError",
    "photos": "SAMPLE_PHOTOS open_photo sample_photo to_pictures to_tensor",
    "base": "Base load",
    "lora": "add_lora merge_lora remove_lora set_scale unmerge_lora",
    "lora_files": "export_lora load_lora save_lora",
    "weights": "available_styles",
    "inference": "stylize",
    "folders": "read_folder stylize_folder",
    "training": "Settings train_style",
    "text_to_image": "generate",
    "dreambooth": "DreamBoothSettings load_dreambooth save_dreambooth train_dreambooth "
    "undo_dreambooth",
    "textual_inversion": "EmbeddingSettings load_embedding train_embedding",
    "scores": "edge_agreement judge load_judge lpips_distance pareto psnr sweep truth_distance",
    "doctor": "install_missing report",
}
_EXPORTS = {name: module for module, names in _NAMES.items() for name in names.split()}

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
