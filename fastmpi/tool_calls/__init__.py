"""Calls of tools in what a model wrote: read, and scored. Import the submodule that you need."""
