"""How large files come and go: signed LFS URLs, and the formats of Xet. Knows no route."""
