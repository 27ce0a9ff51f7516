"""FAISS: building, searching, storing, recall. Its first module comes with the first index."""
