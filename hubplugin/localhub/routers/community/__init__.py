"""Routes of what is said about repos: discussions and collections."""
