"""How good a model is, with and without its policy. Import the submodule that you need."""
