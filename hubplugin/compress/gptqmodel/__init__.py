"""gptqmodel as the engine behind `engine: gptqmodel`, in a process of its own.

Knows gptqmodel's settings and files. Knows no evaluation and no Hub.
"""
