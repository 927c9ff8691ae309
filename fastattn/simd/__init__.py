"""Vector registers as Numba values, and the functions that NumPy has for arrays, for them."""
