"""How a call is cut into tiles, and who works on them."""
