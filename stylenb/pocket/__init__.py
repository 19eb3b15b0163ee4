"""The pocket world: scenes, shapes and styles drawn by code, and the model trained on them."""
