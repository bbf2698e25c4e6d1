"""Compression methods: one file, one pure function each. Weight and second moments in, `Compressed` out."""
