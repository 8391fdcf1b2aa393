"""All that speaks HTTP: views, serializers, filters, pagination, problem documents, idempotency, OpenAPI."""
