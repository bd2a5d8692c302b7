"""What is internalised: rules in text and pictures. Import the submodule that holds what you need."""
