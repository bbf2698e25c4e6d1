"""What another gateway needs to serve the same models with the same arguments of vLLM: text, for somebody to run.

Pure functions of offers. Nothing here starts, listens or writes a file.
"""
