"""Quality of finished folders, the gate, and the card.

Knows folders and reports. Knows no method and no Hub.
"""
