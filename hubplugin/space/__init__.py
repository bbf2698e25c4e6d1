"""A page that compresses models of the Hub for its visitors, on this machine or as a Space of Hugging Face.

Knows the Python API, visitors and their folders. No room below knows it, nor Gradio.
"""
