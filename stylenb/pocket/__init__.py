"""The pocket world: scenes, shapes and styles drawn by code, and the mix to train a model on."""
