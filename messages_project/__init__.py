"""The process around the messages API: configuration, start-up, serving, health. It knows nothing about messages."""
