"""What is done in C against its Python references, and under the sanitizers."""
