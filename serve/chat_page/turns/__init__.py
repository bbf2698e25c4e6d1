"""What is asked and answered: one turn with one model or two, each side of it, and how far two answers' models differ.
Knows `client` and the messages of `conversation`; nothing of the page's layout."""
