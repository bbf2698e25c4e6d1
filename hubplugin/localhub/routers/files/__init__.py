"""Routes of files in repos: commits, trees, downloads and uploads."""
