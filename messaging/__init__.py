"""The product: sending, retrieving and deleting messages. Knows nothing of the process that serves it."""
