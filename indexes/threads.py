"""How many cores FAISS computes with, in this process."""

import faiss


def use_threads(count: int) -> None:
    """Build and search with so many threads; by default they are as many as there are cores."""
    faiss.omp_set_num_threads(count)
