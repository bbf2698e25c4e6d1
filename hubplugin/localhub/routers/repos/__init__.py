"""Routes of repos themselves: their life, their lists, their refs and who may read them."""
