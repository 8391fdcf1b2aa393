"""Who may call, and how often: API keys, end-user tokens, rate limits."""
