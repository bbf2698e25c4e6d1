"""What repos hold, as rows and blobs: refs, commits, cards, discussions. Knows no HTTP request and no permissions."""
